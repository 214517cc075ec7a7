"""Credentials that stay outside: which request gets which, and how its head is written anew on the way out.

One request a connection, with one length, for the host that the connection is for: what is checked here is what the host
will read. Answers are searched for the values, since a service may echo them.
"""

import re
from collections.abc import Callable

from mortice.sandbox.contract import Egress, Secret
from mortice.sandbox.egress_rules import Denied
from mortice.specs.errors import RequestError

ReadValue = Callable[[str], str | None]
"""A secret's value by its name; None: this process has none."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
_FRAMING = {"host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect"}
_DROPPED = {
    b"host",
    b"connection",
    b"proxy-connection",
    b"proxy-authorization",
    b"keep-alive",
    b"expect",
    b"accept-encoding",
}
MIN_VALUE = 8  # a shorter one would be found in any answer


class Keyring:
    """The secrets of one sandbox. Raises RequestError for a policy that cannot be."""

    def __init__(self, egress: Egress, read: ReadValue) -> None:
        self._read = read
        self._by_target: dict[tuple[str, int], list[Secret]] = {}
        for secret in egress.secrets:
            _check(secret, egress)
            for target in secret.hosts:
                host, _, port = target.rpartition(":")
                self._by_target.setdefault((host.lower(), int(port)), []).append(secret)
        for (host, _), secrets in self._by_target.items():
            headers = [s.header.lower() for s in secrets]
            if len(set(headers)) < len(headers):
                raise RequestError(f"two secrets for the same header of {host}", param="egress.secrets")

    def must_be_here(self) -> None:
        """Raises RequestError if a value is missing or unfit: told when a sandbox is made, not at its first request."""
        for secrets in self._by_target.values():
            for secret in secrets:
                value = self._read(secret.name)
                if value is None:
                    raise RequestError(f"the environment has no {secret.name}", param="egress.secrets")
                if len(value) < MIN_VALUE or not _VALUE.fullmatch(value):
                    raise RequestError(
                        f"the value of {secret.name} is no header value of {MIN_VALUE} letters or more",
                        param="egress.secrets",
                    )

    def of(self, name: str, port: int) -> list[Secret]:
        """Those bound to a host."""
        return self._by_target.get((name, port), [])

    def put_in(self, head: bytes, name: str, port: int) -> tuple[bytes, str, "Redactor"]:
        """The head to send on, its method and path for the record, and what watches the answer. Raises Denied, or ValueError
        for a head that cannot be read."""
        method, path, kept = _parted(head, name, port)
        values: dict[bytes, bytes] = {}
        for secret in self.of(name, port):
            if secret.methods and method not in secret.methods:
                raise Denied("secret_method", f"{secret.name} is for {', '.join(secret.methods)} only")
            if secret.paths and not any(_below(path, prefix) for prefix in secret.paths):
                raise Denied("secret_path", f"{secret.name} is for {', '.join(secret.paths)} only")
            value = self._read(secret.name)
            if value is None:
                raise Denied("secret_missing", f"whoever runs this sandbox has no {secret.name} now")
            values[secret.header.lower().encode()] = value.encode()
        own = {secret.header.lower().encode(): secret for secret in self.of(name, port)}
        lines = [line for line in kept if line.partition(b":")[0].strip().lower() not in own]
        lines += [
            header + b": " + secret.format.format(values[header].decode()).encode()
            for header, secret in own.items()
        ]
        host = name if port == 443 else f"{name}:{port}"
        fixed = [b"Host: " + host.encode(), b"Connection: close", b"Accept-Encoding: identity"]
        first = f"{method} {path} HTTP/1.1".encode()
        whole = b"\r\n".join([first, *fixed, *lines]) + b"\r\n\r\n"
        return whole, f"{method} {path.partition('?')[0]}", Redactor(list(values.values()))


class Redactor:
    """Blackens values in a stream, also those that two pieces share; lengths stay as they are."""

    def __init__(self, values: list[bytes]) -> None:
        self._values = sorted(values, key=len, reverse=True)
        self._any = re.compile(b"|".join(map(re.escape, self._values)))
        self._kept = b""
        self.num_found = 0

    def feed(self, data: bytes) -> bytes:
        """What may go on now. Only what may be the beginning of a value waits for more."""
        data, out, at = self._kept + data, [], 0
        while True:
            found, begun = self._any.search(data, at), self._begun(data, at)
            if found is None or begun <= found.start():
                out.append(data[at:begun])
                self._kept = data[begun:]
                return b"".join(out)
            out += [data[at : found.start()], self._black(found)]
            at = found.end()

    def end(self) -> bytes:
        """The rest, once nothing more will come."""
        rest, self._kept = self._kept, b""
        return self._any.sub(self._black, rest)

    def _begun(self, data: bytes, at: int) -> int:
        """From where on the data may be the beginning of a value; its length if nowhere."""
        for start in range(max(at, len(data) - len(self._values[0]) + 1), len(data)):
            tail = data[start:]
            if any(len(value) > len(tail) and value.startswith(tail) for value in self._values):
                return start
        return len(data)

    def _black(self, found: re.Match[bytes]) -> bytes:
        self.num_found += 1
        return b"*" * len(found[0])


def _check(secret: Secret, egress: Egress) -> None:
    param = "egress.secrets"
    if not _VARIABLE.fullmatch(secret.name):
        raise RequestError(f"{secret.name!r} is no name of an environment variable", param=param)
    if not _TOKEN.fullmatch(secret.header) or secret.header.lower() in _FRAMING:
        raise RequestError(f"{secret.name}: {secret.header!r} is no header for a secret", param=param)
    if (
        secret.format.count("{}") != 1
        or not _VALUE.fullmatch(secret.format.replace("{}", "x"))
        or ("{" in secret.format.replace("{}", "") or "}" in secret.format.replace("{}", ""))
    ):
        raise RequestError(f"{secret.name}: the format has one {{}} and is otherwise plain text", param=param)
    if not secret.hosts:
        raise RequestError(f"{secret.name}: a secret is bound to one host:port or more", param=param)
    for target in secret.hosts:
        if egress.mode != "allowlist" or target not in egress.allow or target.startswith("*."):
            raise RequestError(
                f"{secret.name}: {target!r} has to be on the allow list as it is, without a star", param=param
            )
    if not all(re.fullmatch(r"[A-Z]{1,16}", method) for method in secret.methods):
        raise RequestError(f"{secret.name}: methods are words such as GET", param=param)
    if not all(path.startswith("/") for path in secret.paths):
        raise RequestError(f"{secret.name}: paths begin with /", param=param)


def _parted(head: bytes, name: str, port: int) -> tuple[str, str, list[bytes]]:
    """(method, path, header lines to keep)"""
    lines = head.split(b"\r\n")
    if any(b"\n" in line or b"\r" in line or b"\0" in line or line[:1] in (b" ", b"\t") for line in lines):
        raise ValueError("bare or folded line breaks in a head")
    try:
        method, path, version = lines[0].decode("ascii").split(" ")
    except (ValueError, UnicodeDecodeError):
        raise ValueError("the request line cannot be read") from None
    if (
        version != "HTTP/1.1"
        or not re.fullmatch(r"[A-Z]{1,16}", method)
        or not re.fullmatch(r"/[\x21-\x7e]*", path)
    ):
        raise ValueError("only HTTP/1.1 with a path is spoken to this host")
    names = [line.partition(b":")[0].lower() for line in lines[1:]]
    if not all(re.fullmatch(_TOKEN.pattern.encode(), n) for n in names):
        raise ValueError("a header's name cannot be read")
    if names.count(b"content-length") + names.count(b"transfer-encoding") > 1 or b"upgrade" in names:
        raise ValueError("more than one length, or an upgrade")
    hosts = [
        line.partition(b":")[2].strip().lower()
        for line, n in zip(lines[1:], names, strict=True)
        if n == b"host"
    ]
    if any(h not in (name.encode(), f"{name}:{port}".encode()) for h in hosts):
        raise Denied("other_host", f"this connection is for {name}; open another one")
    return method, path, [line for line, n in zip(lines[1:], names, strict=True) if n not in _DROPPED]


def _below(path: str, prefix: str) -> bool:
    """Whether a server that reads the path in any usual way stays below the prefix."""
    plain = path.partition("?")[0]
    if (
        "//" in plain
        or "\\" in plain
        or re.search(r"(^|/)\.\.?(/|;|$)", plain)
        or re.search(r"%(2e|2f|5c|25|00)", plain, re.I)
    ):
        return False
    return plain == prefix or plain.startswith(prefix if prefix.endswith("/") else f"{prefix}/")
