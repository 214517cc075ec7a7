"""`mortice bench` and `mortice chat` as commands, against a scripted endpoint on a thread of its own."""

import asyncio
import json
import threading

import pytest
import typer
from typer.testing import CliRunner

from mortice.bench.scripted import Script, ScriptedServer
from mortice.cli.bench import bench
from mortice.cli.chat import chat
from mortice.specs.errors import RequestError, Unavailable

app = typer.Typer()
app.command("bench")(bench)
app.command("chat")(chat)


@pytest.fixture
def serve():
    """Start a server by `serve(script)`; it ends with the test."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    servers = []

    def on_loop(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(10)

    def start(script=lambda i, body: Script()):
        server = ScriptedServer(script=script)
        on_loop(server.__aenter__())
        servers.append(server)
        return server

    yield start
    for server in servers:
        on_loop(server.__aexit__())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def call(*arguments, **more):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **more)


def test_json_is_one_object_on_stdout(serve):
    done = call("bench", "--base-url", serve().base_url, "--num-prompts", 4, "--output-len", 3, "--json")
    assert done.exit_code == 0
    assert done.stdout.count("\n") == 1
    result = json.loads(done.stdout)
    assert result["num_completed"] == 4
    assert result["output_tokens_per_s"] > 0


def test_a_person_gets_a_table(serve):
    done = call("bench", "--base-url", serve().base_url, "--num-prompts", 4, "--slo-ttft-ms", 60000)
    assert done.exit_code == 0
    for word in ("TTFT", "TPOT", "ITL", "E2E", "4 of 4 met it", "client CPU"):
        assert word in done.stdout


def test_output_and_plots_and_comparison(serve, tmp_path):
    url, file = serve().base_url, tmp_path / "a.json"
    for plot in ("a.png", "a.svg"):
        options = ("--output", file, "--plot", tmp_path / plot, "--slo-ttft-ms", 100, "--json")
        assert call("bench", "--base-url", url, "--num-prompts", 3, *options).exit_code == 0
    requests = json.loads(file.read_bytes())["requests"]
    assert [request["index"] for request in requests] == [0, 1, 2]
    assert len(requests[0]["chunk_s"]) == 64
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "a.svg").read_text()
    compared = call("bench", "--compare", file, file, "--json")
    assert {row["better"] for row in json.loads(compared.stdout)["rows"]} == {"tied", None}
    assert "tied" in call("bench", "--compare", file, file).stdout


def test_a_run_without_one_good_answer_failed(serve, tmp_path):
    server = serve(lambda i, body: Script() if i < 4 else Script(status=503))
    plot = tmp_path / "none.png"
    done = call("bench", "--base-url", server.base_url, "--num-prompts", 2, "--warmup", 0, "--plot", plot)
    assert done.exit_code == 1
    assert "every request failed" in done.stderr
    assert "2 status 503" in done.stdout
    assert plot.exists()


def test_goodput_as_json(serve):
    done = call(
        "bench", "--base-url", serve().base_url, "--goodput", "--rate", 2000, "--slo-ttft-ms", 1e-6,
        "--num-prompts", 2, "--output-len", 2, "--gpus", 2, "--json",
    )  # fmt: skip
    assert done.exit_code == 1
    assert "no rate attains the SLO" in done.stderr
    result = json.loads(done.stdout)
    assert result["goodput"]["goodput_per_gpu"] == 0
    assert result["workload"]["arrival"] == "poisson"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        (["--goodput"], "--goodput"),
        (["--gpus", "2"], "--gpus"),
        (["--plot", "a.pdf"], "--plot"),
        (["--output", "/nowhere/at/all.json"], "--output"),
        (["--rate", "-1"], "--rate"),
        (["--trace", "/nowhere"], "--trace"),
        (["--compare", "/nowhere", "/nowhere"], "--compare"),
        (["--base-url", "here"], "--base-url"),
    ],
)
def test_wrong_options_are_request_errors_before_any_load(options, param):
    done = call("bench", *options)
    assert isinstance(done.exception, RequestError)
    assert done.exception.param == param


def test_unknown_words_are_exit_code_2():
    assert call("bench", "--api", "sideways").exit_code == 2
    assert call("bench", "--num-prompts", "many").exit_code == 2


def test_no_server_is_not_the_users_mistake():
    assert isinstance(call("bench", "--base-url", "http://127.0.0.1:1/v1").exception, Unavailable)
    assert isinstance(call("chat", "--base-url", "http://127.0.0.1:1/v1").exception, Unavailable)


def test_chat_takes_piped_prompts_and_remembers(serve, tmp_path):
    server, file = serve(), tmp_path / "talk.json"
    lines = f"hello\n\n/nonsense\nand then\n/save {file}\n/reset\nanew\n/quit\nnever asked\n"
    done = call("chat", "--base-url", server.base_url, "--system", "be brief", "--max-tokens", 3, input=lines)
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [" word word word"] * 3
    assert done.stderr.count("TTFT") == 3
    assert "no command /nonsense" in done.stderr
    said = [[m["content"] for m in body["messages"]] for body in server.bodies]
    assert said == [
        ["be brief", "hello"],
        ["be brief", "hello", " word word word", "and then"],
        ["be brief", "anew"],
    ]
    assert [m["role"] for m in json.loads(file.read_text())] == [
        "system", "user", "assistant", "user", "assistant",
    ]  # fmt: skip


def test_a_failed_turn_is_forgotten_and_told(serve):
    server = serve(lambda i, body: Script(ending="error event", stop_after=1) if i == 0 else Script())
    done = call(
        "chat", "--base-url", server.base_url, "--max-tokens", 2, input="one\n/save\n/save /no/where\ntwo\n"
    )
    assert done.exit_code == 1
    assert "error: error event: scripted refusal" in done.stderr
    assert "/save needs a file name" in done.stderr
    assert "cannot write /no/where" in done.stderr
    assert [m["content"] for m in server.bodies[1]["messages"]] == ["two"]
