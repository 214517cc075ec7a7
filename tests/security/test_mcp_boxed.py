"""MCP servers in sandboxes: they serve as any other, see nothing of this machine, and die without harm."""

import json
import socket
from pathlib import Path

import pytest

from mortice.agent.artifacts import Artifacts
from mortice.agent.mcp.config import read_servers
from mortice.agent.mcp.consent import Nobody
from mortice.agent.mcp.host import McpHost
from mortice.agent.mcp.pins import Pins
from mortice.agent.tool import CallContext, ToolError
from mortice.sandbox import Sandboxes
from mortice.specs.errors import RequestError

SERVER = Path(__file__).parent.parent / "data" / "agent" / "hostile.py"
CONTEXT = CallContext(run_id="r", turn=0, index=0, key="k", timeout_s=60)


@pytest.fixture
def host(tmp_path, own_boxes):
    def make(*kinds: str, **fields) -> McpHost:
        server = {"command": "python3", "sandbox": {"files": {"/work/server.py": str(SERVER)}}}
        documents = {kind: server | {"args": ["/work/server.py", kind]} | fields for kind in kinds}
        servers = read_servers(documents, folder=tmp_path)

        async def opened() -> Sandboxes:
            return own_boxes

        pins, artifacts = Pins(tmp_path / "pins.json"), Artifacts(tmp_path / "artifacts")
        return McpHost(servers, pins=pins, artifacts=artifacts, consent=Nobody(), boxes=opened)

    return make


async def call(host: McpHost, name: str) -> str:
    tool = next(t for t in host.tools() if t.name == name)
    return (await tool.run({}, CONTEXT)).text


async def test_a_server_behind_the_wall_sees_nothing_of_this_machine(host, own_boxes, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_OF_OURS", "s3cret")
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        env = {"HOSTILE_FILE": str(secret), "HOSTILE_PORT": str(listening.getsockname()[1])}
        async with host("look", env=env) as made:
            seen = json.loads(await call(made, "look__work"))
            names = [info.id for info in own_boxes.list()]
            assert len(names) == 1
    assert seen["files"] == ["server.py"]
    assert (seen["secret"], seen["reached"]) == (False, False)
    assert "SECRET_OF_OURS" not in seen["environment"]
    assert own_boxes.list() == []
    log = (own_boxes.home.audit / f"{names[0]}.jsonl").read_text()
    assert "/work/server.py" in log


@pytest.mark.parametrize("kind", ["oversize", "endless"])
async def test_frames_without_measure_end_the_server(host, own_boxes, kind):
    async with host(kind, max_result_bytes=1 << 20) as made:
        with pytest.raises(ToolError, match="took effect"):
            await call(made, f"{kind}__work")
    assert own_boxes.list() == []


async def test_a_server_that_dies_is_told_with_its_last_words(host):
    async with host("die") as made:
        with pytest.raises(ToolError, match="Nobody knows whether work took effect") as error:
            await call(made, "die__work")
    assert "I cannot go on" in str(error.value)


async def test_one_that_cannot_start_is_a_notice(host, tmp_path):
    async with host("ok", command="/no/such/program") as made:
        assert made.tools() == []
        (notice,) = made.drain()
        assert "the sandbox has no /no/such/program: its image has Python and a shell, and no Node" in notice
    async with host("ok", sandbox={"files": {"/work/x": "missing"}}) as made:
        assert any("no file or folder" in notice for notice in made.drain())


def test_only_commands_run_in_a_sandbox(tmp_path):
    with pytest.raises(RequestError, match=r"a\.sandbox"):
        read_servers({"a": {"url": "http://127.0.0.1/mcp", "sandbox": {}}}, folder=tmp_path)
