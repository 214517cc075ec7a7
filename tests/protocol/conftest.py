"""Two servers on ephemeral ports: `serve`, over a fake cluster with a tokenizer of 256 bytes and a few marks; and
`real_server`, the whole of `mortice serve` on SmolLM2.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mortice.models import store
from mortice.serve.app import build_app
from mortice.serve.options import ServeOptions
from mortice.serve.run import run_server
from mortice.specs.errors import MorticeError
from mortice.testing import FakeCluster
from mortice.text.alphabet import SPELLING
from mortice.text.service import TextService

TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}"
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}<|end|>{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% if enable_thinking %}<think>{% endif %}{% endif %}"
)
SPECIAL = ("<|end|>", "<|start|>")
EOS = 256


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """One token a byte, so that tests can write token ids as text."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.BPE(vocab={char: byte for byte, char in enumerate(SPELLING)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"vocab_size": EOS + len(SPECIAL)}))
    return folder


@contextlib.asynccontextmanager
async def serving(
    folder, *, options: ServeOptions | None = None, signals: bool = False, **settings
) -> AsyncIterator[SimpleNamespace]:
    """`cluster`, `edge`, `task`, `url`, `host`, `port` of a running server, and `http`, a client of it."""
    settings.setdefault("script", lambda request, index: list(b"Hello, world"))
    settings = {"vocab_size": EOS + len(SPECIAL), "eos_token_ids": [EOS], "adapters": ["tuned"], **settings}
    cluster = FakeCluster(**settings)
    text = TextService(folder)
    await asyncio.gather(cluster.start(), text.start())
    app = build_app(cluster, text, options or ServeOptions())
    started = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        run_server(app, port=0, on_started=lambda *address: started.set_result(address), signals=signals)
    )
    try:
        await asyncio.wait({task, started}, return_when=asyncio.FIRST_COMPLETED)
        host, port = started.result()
        url = f"http://{host}:{port}"
        async with httpx.AsyncClient(base_url=url, timeout=20) as http:
            yield SimpleNamespace(
                cluster=cluster,
                edge=app.edge,
                task=task,
                url=url,
                http=http,
                host=host,
                port=port,
                until=until,
            )
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await text.stop()
        await cluster.stop(0)


@pytest.fixture
def serve(model_folder):
    """`async with serve(options=..., **settings of FakeCluster) as server`."""
    return partial(serving, model_folder)


@pytest.fixture
async def server(serve):
    async with serve() as running:
        yield running


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until the condition holds; the test's own time limit ends a wait in vain."""
    while not condition():
        await asyncio.sleep(0.002)


@dataclass(frozen=True)
class RealServer:
    url: str
    model: str
    model_file: str
    log_file: str

    def wait_until_at_rest(self) -> None:
        """Until no worker holds a sequence, a lease or a fetch; each walks the books of its pool."""
        for _ in range(200):
            answer = httpx.post(f"{self.url}/admin/check_integrity", timeout=30).raise_for_status().json()
            workers = answer["workers"].values()
            if all(w["num_sequences"] == w["num_leases"] == w["num_fetching"] == 0 for w in workers):
                break
            time.sleep(0.05)
        else:
            raise AssertionError(f"still held: {answer}")
        assert len(workers) == 2
        assert all(w["num_free_blocks"] == w["num_blocks"] for w in workers)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    try:
        return store.pull("smollm2", print)
    except MorticeError as error:
        pytest.skip(f"no SmolLM2 here: {error}")


@pytest.fixture(scope="session")
def real_server(smollm2, tmp_path_factory) -> Iterator[RealServer]:
    """`mortice serve` in a process of its own: SmolLM2 in float32, every prompt prefilled by one worker and
    decoded by another.
    """
    log_file = tmp_path_factory.mktemp("server") / "log.txt"
    options = "--prefill 1 --decode 1 --local-prefill-tokens 0 --dtype float32 --max-context 2048"
    command = [
        sys.executable,
        "-m",
        "mortice",
        "serve",
        "--model",
        "smollm2",
        "--port",
        "0",
        *options.split(),
    ]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ)
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on http://"), log_file.read_text()
        yield RealServer(line.split()[-1], "smollm2", str(next(smollm2.glob("*.gguf"))), str(log_file))
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
    assert process.returncode == 0, log_file.read_text()
