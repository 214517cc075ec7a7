"""Secrets stay outside: requests get them on their way out, and neither the guest, nor the log, nor a snapshot has them."""

import asyncio
import json
import random
import re
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from mortice.cli import main
from mortice.obs.audit_verify import records
from mortice.sandbox import Egress, Limits, Sandboxes, SandboxSpec, Secret
from mortice.sandbox.box import Box
from mortice.sandbox.egress_rules import Denied
from mortice.sandbox.egress_tls import Authority
from mortice.sandbox.home import Home
from mortice.sandbox.secrets import Keyring, Redactor
from mortice.specs.errors import RequestError

VALUE = "sk-very-secret-4711"
FETCH = """
import json, os, ssl, urllib.request, urllib.error
def fetch(url, method=None, data=None, **headers):
    request = urllib.request.Request(url, data=data, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return type(error).__name__, str(error)
"""


class Site:
    """A host that is spoken to over TLS, and that tells back what it was told."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.encoding = b""
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        body = await reader.readexactly(int(length[1])) if length else b""
        self.heads.append(head)
        told = b"you said " + head + body
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Seen: " % len(told) + VALUE.encode() + b"\r\n"
        )
        writer.write(self.encoding + b"\r\n" + told[:40])
        await writer.drain()
        writer.write(told[40:])
        await writer.drain()
        writer.close()


@pytest.fixture
async def site(tmp_path: Path, certificate: Callable[[Path, str], Path]) -> AsyncIterator[Site]:
    found = Site()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path / "site.pem", "api.example"))
    async with await asyncio.start_server(found.serve, "127.0.0.1", 0, ssl=context) as server:
        found.port = server.sockets[0].getsockname()[1]
        yield found


async def open_box(boxes: Sandboxes, site: Site, tmp_path: Path, **policy: object) -> Box:
    async def resolve(name: str, port: int) -> list[str]:
        return ["127.0.0.1"] if name in ("api.example", "plain.example") else []

    boxes.resolve = resolve
    boxes.check_addresses = lambda name, found: found[0]
    boxes.read_secret = {"API_KEY": VALUE}.get
    boxes.upstream_context = lambda: ssl.create_default_context(cafile=str(tmp_path / "site.pem"))
    target = f"api.example:{site.port}"
    secret = Secret(name="API_KEY", hosts=(target,), **policy)  # type: ignore[arg-type]
    spec = SandboxSpec(
        backend="gvisor", limits=Limits(memory_bytes=256 << 20),
        egress=Egress(mode="allowlist", allow=(target, f"plain.example:{site.port}"), secrets=(secret,)),
    )  # fmt: skip
    box = await boxes.create_box(spec)
    assert (await box.run_cell(FETCH, cell_id="fetch")).ok
    return box


async def ask(box: Box, call: str, cell_id: str) -> tuple[object, str]:
    result = await box.run_cell(call, cell_id=cell_id)
    assert result.value is not None, result
    status, text = eval(result.value)
    return status, text


async def test_a_request_gets_its_secret_on_the_way_and_nothing_here_has_it(
    boxes: Sandboxes, site: Site, tmp_path: Path
) -> None:
    box = await open_box(boxes, site, tmp_path, methods=("GET", "POST"), paths=("/v1",))
    base = f"https://api.example:{site.port}"
    held = await box.run_cell("os.environ['API_KEY']", cell_id="held")
    assert held.value == "'held-outside-API_KEY'"
    call = f"fetch('{base}/v1/x?q=1', data=b'hi', Authorization='Bearer ' + os.environ['API_KEY'])"
    status, text = await ask(box, call, "ok")
    assert status == 200, text
    assert f"POST /v1/x?q=1 HTTP/1.1\r\nHost: api.example:{site.port}\r\n" in text
    sent = site.heads[0].decode()
    assert (sent.count(f"authorization: Bearer {VALUE}\r\n"), "held-outside" in sent) == (1, False)
    assert "Accept-Encoding: identity\r\n" in sent
    assert VALUE not in text, "a host may say it back"
    assert "Bearer " + "*" * len(VALUE) in text
    for n, (more, rule) in enumerate(
        [
            (f"fetch('{base}/admin')", "secret_path"),
            (f"fetch('{base}/v1/%2e%2e/admin')", "secret_path"),
            (f"fetch('{base}/v1/x', method='DELETE')", "secret_method"),
            (f"fetch('{base}/v1/x', Host='plain.example')", "other_host"),
            (f"fetch('http://api.example:{site.port}/v1/x')", "secret_needs_tls"),
        ]
    ):
        status, text = await ask(box, more, f"deny{n}")
        assert (status, json.loads(text)["rule"]) == (403, rule)
    assert len(site.heads) == 1
    site.encoding = b"Content-Encoding: gzip\r\n"
    status, text = await ask(box, f"fetch('{base}/v1/x')", "gzip")
    assert (status, json.loads(text)["rule"]) == (403, "secret_encoding")
    other = f"fetch('https://plain.example:{site.port}/', Authorization=os.environ['API_KEY'])"
    status, text = await ask(box, other, "plain")
    assert status == "URLError", (
        "TLS to other hosts is theirs, and this one's certificate is for another name"
    )
    snapshot = await box.snapshot()
    again = await boxes.restore(snapshot)
    site.encoding = b""
    status, _ = await ask(again, f"fetch('{base}/v1/after')", "after")
    assert (status, VALUE in site.heads[-1].decode()) == (200, True)
    flows = [r for r in records(boxes.home.audit, box.record.id) if r["kind"].startswith("egress")]
    assert [r.get("put_in") for r in flows if r.get("request") == "POST /v1/x"] == [["API_KEY"]]
    assert [r["echoes"] for r in flows if "echoes" in r] == [2], "in its head and in its body"
    found = [str(p) for p in boxes.home.root.rglob("*") if p.is_file() and VALUE.encode() in p.read_bytes()]
    assert found == []


async def test_a_host_that_is_not_who_it_says_gets_nothing(
    boxes: Sandboxes, site: Site, tmp_path: Path
) -> None:
    box = await open_box(boxes, site, tmp_path)
    boxes.upstream_context = ssl.create_default_context
    again = await boxes.restore(await box.snapshot())
    status, text = await ask(again, f"fetch('https://api.example:{site.port}/')", "a")
    assert (status, json.loads(text)["error"]) == (502, "egress_failed")
    assert site.heads == []


async def test_a_value_that_is_not_there_is_told_when_the_sandbox_is_made(boxes: Sandboxes) -> None:
    secret = Secret(name="NO_SUCH_KEY", hosts=("api.example:443",))
    egress = Egress(mode="allowlist", allow=("api.example:443",), secrets=(secret,))
    boxes.read_secret = {}.get
    with pytest.raises(RequestError, match="the environment has no NO_SUCH_KEY"):
        await boxes.create(SandboxSpec(egress=egress))
    for value in ("short", "with\nline break", "with\ttab in it"):
        boxes.read_secret = {"NO_SUCH_KEY": value}.get
        with pytest.raises(RequestError, match="no header value"):
            await boxes.create(SandboxSpec(egress=egress))
    assert boxes.list() == []


def keyring(**policy: object) -> Keyring:
    fields = {"name": "API_KEY", "hosts": ("api.example:443",)} | policy
    allow = ("api.example:443", "*.wild.example:443", "other.example:443")
    egress = Egress(mode="allowlist", allow=allow, secrets=(Secret(**fields),))  # type: ignore[arg-type]
    return Keyring(egress, {"API_KEY": VALUE}.get)


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ({"hosts": ()}, "bound to one host:port"),
        ({"hosts": ("unknown.example:443",)}, "on the allow list"),
        ({"hosts": ("*.wild.example:443",)}, "without a star"),
        ({"header": "Host"}, "no header for a secret"),
        ({"header": "X Y"}, "no header for a secret"),
        ({"format": "Bearer"}, "has one {}"),
        ({"format": "{} {}"}, "has one {}"),
        ({"format": "{}{x}"}, "has one {}"),
        ({"format": "Bearer {}\r\nX: y"}, "has one {}"),
        ({"name": "A-B"}, "no name of an environment variable"),
        ({"methods": ("get",)}, "words such as GET"),
        ({"paths": ("v1",)}, "begin with /"),
    ],
)
def test_a_policy_that_cannot_be_is_told(policy: dict[str, object], text: str) -> None:
    with pytest.raises(RequestError, match=re.escape(text)):
        keyring(**policy)


@pytest.mark.parametrize(
    "path",
    ["/", "/v10/x", "/v1/../x", "/v1/..", "/v1/./x", "/v1//x", "/v1/..;/x", "/v1/%2E%2e/x", "/v1/%2fx", "/v1/a%5cb",
     "/v1/\\..\\x", "/v1/%252e%252e/x", "/v1/a%00"],
)  # fmt: skip
def test_a_path_that_some_server_reads_otherwise_is_not_below(path: str) -> None:
    with pytest.raises(Denied):
        keyring(paths=("/v1",)).put_in(f"GET {path} HTTP/1.1".encode(), "api.example", 443)


@pytest.mark.parametrize("path", ["/v1", "/v1/x", "/v1/x.y/..z", "/v1?next=/../x", "/v1/x?a//b=%2e%2e"])
def test_a_path_below_is_let_through_as_it_is(path: str) -> None:
    head, request, _ = keyring(paths=("/v1",)).put_in(f"GET {path} HTTP/1.1".encode(), "api.example", 443)
    assert head.startswith(f"GET {path} HTTP/1.1\r\nHost: api.example\r\n".encode())
    assert "?" not in request


@pytest.mark.parametrize(
    "head",
    ["GET /v1 HTTP/1.0", "GET http://api.example/ HTTP/1.1", "GET / HTTP/1.1\r\nA: b\r\n folded", "GET / HTTP/1.1\r\nA b: c",
     "GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked", "GET / HTTP/1.1\r\nUpgrade: h2c",
     "GET / HTTP/1.1\r\nAuthorization : x", "GET / HTTP/1.1\nA: b"],
)  # fmt: skip
def test_a_head_that_can_be_read_in_two_ways_is_refused(head: str) -> None:
    with pytest.raises(ValueError, match=r"line|HTTP/1.1|name|length"):
        keyring().put_in(head.encode(), "api.example", 443)


def test_a_value_is_blackened_however_the_stream_is_cut() -> None:
    seed = 4711
    print("seed", seed)
    draw = random.Random(seed)
    values = [b"secret-one", b"secret-one-longer", b"xxxxxxxx"]
    for _ in range(300):
        parts = [draw.choice([*values, b"plain", b"secret-on", b"xxxx", b""]) for _ in range(12)]
        data = b"|".join(parts)
        redactor, out, at = Redactor(values), b"", 0
        while at < len(data):
            step = draw.randrange(1, 9)
            out += redactor.feed(data[at : at + step])
            at += step
        out += redactor.end()
        assert len(out) == len(data)
        assert not any(value in out for value in values)
        assert out.count(b"plain") == data.count(b"plain")


def test_what_is_no_part_of_a_value_goes_on_at_once() -> None:
    redactor = Redactor([b"abababab"])
    assert (redactor.feed(b"data: x\n\n"), redactor.feed(b"ab"), redactor.feed(b"c")) == (
        b"data: x\n\n",
        b"",
        b"abc",
    )
    assert (redactor.feed(b"abababab"), redactor.feed(b"abab"), redactor.end()) == (b"*" * 8, b"", b"abab")


def test_the_authority_is_kept_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    one, two = Authority(home), Authority(home)
    assert one.bundle() == two.bundle()
    assert b"PRIVATE KEY" not in one.bundle()
    assert (home.root / "egress-authority.pem").stat().st_mode & 0o077 == 0


def test_the_command_line_binds_a_secret_to_a_host_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MORTICE_SANDBOX_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    for text, said in (("NO_SUCH_KEY@api.example:443", "no NO_SUCH_KEY"), ("KEY", "not NAME@host:port")):
        monkeypatch.setattr(sys, "argv", ["mortice", "sandbox", "run", "--secret", text, "--", "true"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code, said in capsys.readouterr().err) == (2, True)
