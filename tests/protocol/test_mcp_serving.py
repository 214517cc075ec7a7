"""Our MCP servers from outside: over stdio and HTTP, with tokens and without."""

import json
import os
import subprocess
import sys
import time

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from mcp import Client, StdioServerParameters

from mortice.agent.mcp.oauth import JwtVerifier, read_auth
from mortice.agent.mcp.serving import parsed
from mortice.specs.errors import RequestError

ISSUER, RESOURCE = "https://login.example.org", "http://127.0.0.1/mcp"


@pytest.fixture
def agent(tmp_path):
    """An agent's document."""
    path = tmp_path / "agent.json"
    turns = [{"type": "script", "turns": [{"say": "The answer is 42."}]}]
    path.write_text(json.dumps({"name": "answerer", "model": turns[0]}))
    return path


@pytest.fixture
def keys(tmp_path):
    """A private key, and an auth document that trusts it."""
    private = ec.generate_private_key(ec.SECP256R1())
    public = json.loads(ECAlgorithm.to_jwk(private.public_key())) | {
        "kid": "k1",
        "alg": "ES256",
        "use": "sig",
    }
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [public]}))
    document = {"issuer": ISSUER, "resource": RESOURCE, "jwks": "jwks.json", "scopes": ["run"]}
    (tmp_path / "auth.json").write_text(json.dumps(document))
    return private, tmp_path / "auth.json"


def token(private, **changes) -> str:
    claims = {
        "iss": ISSUER,
        "aud": RESOURCE,
        "exp": time.time() + 300,
        "sub": "ada",
        "scope": "run",
    } | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, private, algorithm="ES256", headers={"kid": "k1"})


def command(agent, tmp_path, *more: str) -> list[str]:
    return [
        "-m",
        "mortice",
        "agent",
        "serve-mcp",
        "--config",
        str(agent),
        "--home",
        str(tmp_path / "h"),
        *more,
    ]


async def test_an_agent_as_a_tool_over_stdio(agent, tmp_path):
    parameters = StdioServerParameters(command=sys.executable, args=command(agent, tmp_path))
    told = []

    async def progress(done, total, message):
        told.append(message)

    async with Client(parameters) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert names == {"answerer", "continue_run"}
        result = await client.call_tool("answerer", {"task": "Ask."}, progress_callback=progress)
        assert not result.is_error, result.content
        answer = result.structured_content
        assert (answer["state"], answer["output"]) == ("done", "The answer is 42.")
        again = await client.call_tool("continue_run", {"run": answer["run"]})
        assert again.structured_content["output"] == "The answer is 42."
        shown = await client.read_resource(f"run://{answer['run']}")
        assert json.loads(shown.contents[0].text)["turns"][0]["thought"] == "The answer is 42."
        missing = await client.call_tool("continue_run", {"run": "nothing"})
        assert missing.is_error
    assert told == ["The answer is 42."]


async def test_a_sandbox_for_any_host(tmp_path):
    doctor = subprocess.run(
        [sys.executable, "-m", "mortice", "sandbox", "doctor", "--json"],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    if doctor.returncode != 0 or not json.loads(doctor.stdout).get("chosen"):
        pytest.skip("no sandbox works here")
    home = {"MORTICE_SANDBOX_HOME": str(tmp_path / "boxes")}
    arguments = ["-m", "mortice", "sandbox", "serve-mcp"]
    async with Client(StdioServerParameters(command=sys.executable, args=arguments, env=home)) as client:
        ran = await client.call_tool("run_python", {"code": "x = 41\nx + 1"})
        assert (ran.structured_content["value"], ran.structured_content["ok"]) == ("42", True)
        assert ran.structured_content["strength"] in ("gvisor", "microvm")
        await client.call_tool("write_file", {"path": "a", "text": "one"})
        copied = await client.call_tool("fork", {"sandbox": "default", "new": "other"})
        assert not copied.is_error
        seen = await client.call_tool(
            "run_python", {"code": "print(x, open('/work/a').read())", "sandbox": "other"}
        )
        assert seen.structured_content["stdout"] == "41 one\n"
        failed = await client.call_tool("run_python", {"code": "1 / 0"})
        assert "ZeroDivisionError" in failed.structured_content["error"]
        missing = await client.call_tool("read_file", {"path": "nothing"})
        assert missing.is_error
        assert "No such file" in missing.content[0].text
        bad = await client.call_tool("run_python", {"code": "1", "sandbox": "../x"})
        assert bad.is_error
    left = subprocess.run(
        [sys.executable, "-m", "mortice", "sandbox", "ls", "--json"],
        capture_output=True, text=True, check=True, timeout=60, env=os.environ | home,
    )  # fmt: skip
    assert json.loads(left.stdout) == []


@pytest.fixture
def http(agent, tmp_path, keys):
    """Address of the agent over HTTP, for holders of a token."""
    process = subprocess.Popen(
        [sys.executable, *command(agent, tmp_path, "--http", "127.0.0.1:0", "--auth", str(keys[1]))],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    line = process.stderr.readline()
    assert line.startswith("listening on "), line + process.stderr.read()
    yield line.split()[-1]
    process.terminate()
    process.wait(20)
    process.stderr.close()


def test_only_holders_of_a_token_for_us_are_served(http, keys):
    private, _ = keys
    stranger = ec.generate_private_key(ec.SECP256R1())
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}

    def status(bearer: str | None, **headers: str) -> int:
        sent = {"accept": "application/json, text/event-stream"} | headers
        if bearer is not None:
            sent["authorization"] = f"Bearer {bearer}"
        return httpx.post(http, json=request, headers=sent, timeout=20).status_code

    good = token(private)
    refused = [
        None,
        "no token at all",
        token(stranger),
        token(private, exp=time.time() - 3600),
        token(private, aud="https://other.example.org/mcp"),
        token(private, iss="https://evil.example.org"),
        token(private, aud=None),
        token(private, exp=None),
        jwt.encode({"iss": ISSUER, "aud": RESOURCE, "exp": time.time() + 300}, "x" * 32, algorithm="HS256"),
        "x" * 20_000,
    ]
    assert [status(bearer) for bearer in refused] == [401] * len(refused)
    assert status(token(private, scope="read")) == 403
    assert status(good) not in (401, 403, 421)
    assert status(good, origin="https://evil.example.org") == 403
    assert status(good, host="evil.example.org") == 421
    described = httpx.get(
        http.replace("/mcp", "/.well-known/oauth-protected-resource/mcp"), timeout=20
    ).json()
    assert described["authorization_servers"][0].rstrip("/") == ISSUER


async def test_the_verifier_says_who_it_was(keys):
    private, path = keys
    verifier = JwtVerifier(read_auth(path))
    found = await verifier.verify_token(token(private, client_id="app", scope="run read"))
    assert (found.client_id, found.subject, found.scopes, found.resource) == (
        "app",
        "ada",
        ["run", "read"],
        RESOURCE,
    )


def test_nothing_listens_to_everybody_without_tokens(agent, tmp_path):
    done = subprocess.run(
        [sys.executable, *command(agent, tmp_path, "--http", "0.0.0.0:0")],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "give --auth" in done.stderr


@pytest.mark.parametrize("address", ["8000", "host:", "host:x", "host:70000"])
def test_addresses_that_are_none(address):
    with pytest.raises(RequestError, match="HOST:PORT"):
        parsed(address)


@pytest.mark.parametrize(
    "changes", [{"issuer": "x"}, {"resource": "ftp://h"}, {"jwks": "http://h/keys"}, {"more": 1}]
)
def test_auth_documents_that_are_wrong(changes, tmp_path):
    document = {"issuer": ISSUER, "resource": RESOURCE, "jwks": "jwks.json"} | changes
    (tmp_path / "auth.json").write_text(json.dumps(document))
    with pytest.raises(RequestError):
        read_auth(tmp_path / "auth.json")
