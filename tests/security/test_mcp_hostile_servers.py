"""MCP servers that lie, hang, flood, rename and die: the host says so, stays up, and leaves nothing behind."""

import asyncio
import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from mortice.agent.artifacts import Artifacts
from mortice.agent.mcp.config import McpServer, read_servers
from mortice.agent.mcp.consent import Nobody
from mortice.agent.mcp.host import McpHost, exposed
from mortice.agent.mcp.pins import Pins
from mortice.agent.tool import CallContext, ToolError
from mortice.specs.errors import RequestError

SERVER = Path(__file__).parent.parent / "data" / "agent" / "hostile.py"
CONTEXT = CallContext(run_id="r", turn=0, index=0, key="k", timeout_s=30)


def server(kind: str, **fields) -> McpServer:
    fields = {"call_timeout_s": 20.0, "connect_timeout_s": 20.0} | fields
    return McpServer(command=sys.executable, args=(str(SERVER), kind), **fields)


@pytest.fixture
def host(tmp_path):
    def make(*kinds: str, **fields) -> McpHost:
        servers = {kind: server(kind, **fields) for kind in kinds}
        artifacts = Artifacts(tmp_path / "artifacts")
        return McpHost(servers, pins=Pins(tmp_path / "pins.json"), artifacts=artifacts, consent=Nobody())

    return make


async def call(host: McpHost, name: str):
    tool = next(t for t in host.tools() if t.name == name)
    return await tool.run({}, CONTEXT)


async def test_a_server_that_never_answers_is_given_up_and_others_work(host):
    async with host("hang", "ok", call_timeout_s=0.5) as made:
        with pytest.raises(ToolError, match="gave no answer to work in time"):
            await call(made, "hang__work")
        assert (await call(made, "ok__work")).text == "ok"


async def test_a_server_that_does_not_even_greet(host):
    async with host("mute", "ok", connect_timeout_s=1.0) as made:
        assert [t.name for t in made.tools()] == ["ok__work"]
        assert any("mute did not answer" in notice for notice in made.drain())


async def test_a_command_that_is_not_there_is_a_notice(tmp_path):
    servers = {"gone": McpServer(command="/no/such/program")}
    host = McpHost(servers, pins=Pins(tmp_path / "p"), artifacts=Artifacts(tmp_path), consent=Nobody())
    async with host:
        assert host.tools() == []
        assert any("cannot be started" in notice for notice in host.drain())


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("twice", "first"),
        ("stranger", "real"),
        ("garbage", "after garbage"),
        ("storm", "after the storm"),
    ],
)
async def test_noise_is_survived(host, kind, text):
    async with host(kind) as made:
        assert (await call(made, f"{kind}__work")).text == text


async def test_progress_keeps_a_slow_call_alive_but_not_for_ever(host):
    async with host("progress", call_timeout_s=1.5) as made:  # of 2.4 s, a word every 0.04
        assert (await call(made, "progress__work")).text == "slow but alive"
    async with host("progress", call_timeout_s=0.6, call_limit_s=0.6) as made:
        with pytest.raises(ToolError, match="in time"):
            await call(made, "progress__work")


@pytest.mark.parametrize("kind", ["oversize", "endless"])
async def test_frames_without_measure_end_the_server_not_us(host, kind):
    before = psutil.Process().memory_info().rss
    async with host(kind, max_result_bytes=1 << 20) as made:
        with pytest.raises(ToolError, match="took effect"):
            await call(made, f"{kind}__work")
    assert psutil.Process().memory_info().rss - before < 64 << 20


@pytest.mark.parametrize(("kind", "text"), [("liar", "not what it says"), ("shape", "broke the protocol")])
async def test_results_that_are_not_what_was_promised(host, kind, text):
    async with host(kind) as made:
        with pytest.raises(ToolError, match=text):
            await call(made, f"{kind}__work")


async def test_a_call_in_flight_is_not_repeated_blindly(host, tmp_path, monkeypatch):
    count = tmp_path / "count"
    fields = {"env": {"HOSTILE_COUNT": str(count)}}
    async with host("die", **fields) as made:
        with pytest.raises(ToolError, match="Nobody knows whether work took effect") as error:
            await call(made, "die__work")
        assert "I cannot go on" in str(error.value)
    assert count.read_text().count("x") == 1
    async with host("die", effects={"work": "read"}, **fields) as made:
        with pytest.raises(Exception, match="die"):
            await call(made, "die__work")
    assert count.read_text().count("x") == 3  # once, and once more since reading does no harm


async def test_children_of_a_server_do_not_outlive_it(host):
    async with host("daemon") as made:
        leader = int((await call(made, "daemon__work")).text)
        assert psutil.pid_exists(leader)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        alive = [p for p in psutil.process_iter(["cmdline", "status"]) if _of(p, leader)]
        if not alive:
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"still there: {alive}")


def _of(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


async def test_ten_thousand_tools_in_pages_are_cut(host):
    async with host("pages", max_tools=1200) as made:
        assert len(made.tools()) == 1200


async def test_a_list_that_goes_round_ends(host):
    async with host("cycle") as made:
        assert 1 <= len(made.tools()) <= 3


async def test_poisoned_descriptions_are_withheld(host):
    async with host("poison") as made:
        assert [t.name for t in made.tools()] == ["poison__good"]
        notices = " ".join(made.drain())
        assert "speaks to the model" in notices
        assert "invisible characters" in notices


async def test_schemas_that_reach_out_or_explode_are_withheld(host):
    async with host("schemas", max_result_bytes=8 << 20) as made:
        assert [t.name for t in made.tools()] == ["schemas__good"]


async def test_tools_renamed_in_mid_run_are_withheld_until_pinned(host, tmp_path):
    async with host("rename") as made:
        assert (await call(made, "rename__work")).text == "done"
        for _ in range(2000):
            await made.refresh()
            if made.connections["rename"].tools[0].name == "other":
                break
            await asyncio.sleep(0.02)
        assert made.tools() == []
        notices = " ".join(made.drain())
        assert "tools of rename have changed" in notices
        assert "its description has changed since it was approved" in notices
        assert "it is new" in notices
    Pins(tmp_path / "pins.json").pin("other-server", {})
    async with host("rename") as made:  # what was pinned at first holds in the next run too
        assert [t.name for t in made.tools()] == ["rename__work"]


async def test_a_trusted_server_may_change(host):
    async with host("rename", trusted=True) as made:
        await call(made, "rename__work")
        for _ in range(2000):
            await made.refresh()
            if len(made.tools()) == 2:
                return
            await asyncio.sleep(0.02)
        pytest.fail("the new list never came")


async def test_only_what_was_allowed_is_offered(host):
    async with host("ok", allow=()) as made:
        assert made.tools() == []
    async with host("ok", deny=("work",)) as made:
        assert made.tools() == []
    async with host("ok", approve=("work",), effects={"work": "read"}) as made:
        (tool,) = made.tools()
        assert (tool.approve, tool.effect, tool.untrusted) == (True, "read", True)
    async with host("ok") as made:
        assert made.tools()[0].effect == "write_external"


async def test_a_server_sees_only_the_environment_it_was_given(host, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_OF_OURS", "s3cret")
    async with host("ok", env={"HANDED": "$SECRET_OF_OURS"}) as made:
        process = next(p for p in psutil.Process().children() if "hostile.py" in " ".join(p.cmdline()))
        environment = process.environ()
        assert environment.get("HANDED") == "s3cret"
        assert "SECRET_OF_OURS" not in environment
        assert made.tools()


def test_names_are_short_and_safe():
    assert exposed("files", "read file!") == "files__read_file_"
    assert len(exposed("files", "x" * 300)) <= 64
    assert exposed("files", "x" * 300) != exposed("files", "x" * 299 + "y")


@pytest.mark.parametrize(
    "document",
    [
        {"a b": {"command": "x"}},
        {"a": {}},
        {"a": {"command": "x", "url": "http://h"}},
        {"a": {"url": "file:///etc/passwd"}},
        {"a": {"command": "x", "effects": {"t": "harmless"}}},
        {"a": {"command": "x", "unknown": 1}},
        {"a": "x"},
    ],
)
def test_documents_that_are_wrong_say_where(document, tmp_path):
    with pytest.raises(RequestError, match="mcpServers"):
        read_servers(document, folder=tmp_path)
