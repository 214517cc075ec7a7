"""A headless Chromium and a real server over a fake cluster, the server in a thread with a loop of its own."""

import asyncio
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mortice.serve.app import build_app
from mortice.serve.options import ServeOptions
from mortice.serve.run import run_server
from mortice.testing import FakeCluster
from mortice.text.alphabet import SPELLING
from mortice.text.service import TextService

EOS = 256
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


class Server:
    """`cluster`, `edge` and `url` of a running server; `on_loop` runs a call where they live."""

    def __init__(self, folder: Any, options: ServeOptions, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self._folder, self._options = folder, options
        self._started: Future[tuple[str, int]] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> "Server":
        self._thread.start()
        host, port = self._started.result(30)
        self.url = f"http://{host}:{port}/"
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    async def _run(self) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        text = TextService(self._folder)
        await asyncio.gather(self.cluster.start(), text.start())
        app = build_app(self.cluster, text, self._options)
        self.edge = app.edge

        def started(*address: Any) -> None:
            self._started.set_result(address)

        task = asyncio.create_task(run_server(app, port=0, on_started=started, signals=False))
        await self._stop.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await text.stop()
        await self.cluster.stop(0)

    def on_loop(self, call: Callable[..., Any], *args: Any, **named: Any) -> Any:
        async def run() -> Any:
            return call(*args, **named)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tokenizer of one token a byte."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.BPE(vocab={char: byte for byte, char in enumerate(SPELLING)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"vocab_size": EOS + 1}))
    return folder


@pytest.fixture
def serve(model_folder):
    """`with serve(options=..., cluster=FakeCluster subclass, **settings of it) as server`."""

    def start(
        *, options: ServeOptions | None = None, cluster: type[FakeCluster] = FakeCluster, **settings: Any
    ) -> Server:
        settings.setdefault("script", lambda request, index: list(b"Hello, world"))
        made = cluster(vocab_size=EOS + 1, eos_token_ids=[EOS], **settings)
        return Server(model_folder, options or ServeOptions(), made)

    return start


@pytest.fixture(scope="session")
def open_browser(tmp_path_factory):
    """`with open_browser(width, height, dark=False) as driver`: a Chromium with a fresh profile."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("needs chromium and chromedriver")

    @contextmanager
    def opened(width: int = 1280, height: int = 900, *, dark: bool = False, calm: bool = False):
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
        try:
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            features = [
                {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
                {"name": "prefers-reduced-motion", "value": "reduce" if calm else "no-preference"},
            ]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            yield driver
        finally:
            driver.quit()

    return opened
