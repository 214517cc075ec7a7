"""What may leave a sandbox: names and ports before anything is looked up, addresses before anything is connected to."""

import ipaddress
import re

from mortice.sandbox.contract import Egress
from mortice.specs.errors import RequestError

_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
_NUMBERLIKE = re.compile(r"(0x[0-9a-f]+|[0-9.]+|[0-9a-fx.]*)")


class Denied(Exception):
    """A flow that is not allowed: the rule that says so, and what to do."""

    def __init__(self, rule: str, hint: str) -> None:
        super().__init__(rule)
        self.rule = rule
        self.hint = hint


class Rules:
    """An `Egress`, read once. Raises RequestError for a rule that cannot be."""

    def __init__(self, egress: Egress) -> None:
        self.egress = egress
        self._exact: set[tuple[str, int]] = set()
        self._under: set[tuple[str, int]] = set()
        for rule in egress.allow:
            host, _, port = rule.rpartition(":")
            if not port.isdigit() or not 1 <= int(port) <= 65535:
                raise RequestError(f"{rule!r} is not host:port", param="egress.allow")
            wild = host.startswith("*.")
            name = host.removeprefix("*.").lower()
            if not _NAME.fullmatch(name):
                raise RequestError(
                    f"{rule!r}: {host!r} is no host name (addresses are not allowed by number)",
                    param="egress.allow",
                )
            (self._under if wild else self._exact).add((name.rstrip("."), int(port)))
        if egress.mode == "allowlist" and not egress.allow:
            raise RequestError("mode allowlist needs at least one host:port", param="egress.allow")

    def check_name(self, host: str, port: int) -> str:
        """The name to look up. Raises Denied before anything is looked up."""
        name = host.lower().rstrip(".")
        if ":" in name or _NUMBERLIKE.fullmatch(name):
            raise Denied("no_address_literals", "use the host's name; addresses by number are not allowed")
        if not _NAME.fullmatch(name) or len(name) > 253:
            raise Denied("bad_name", "the host name is malformed")
        if self.egress.mode == "public":
            if port not in (80, 443):
                raise Denied("port", "only ports 80 and 443 are open")
            return name
        if (name, port) in self._exact:
            return name
        parts = name.split(".")
        if any((".".join(parts[i:]), port) in self._under for i in range(1, len(parts))):
            return name
        allowed = ", ".join(self.egress.allow) or "nothing"
        raise Denied("not_on_allow_list", f"{name}:{port} is not allowed here; allowed: {allowed}")


def check_addresses(name: str, addresses: list[str]) -> str:
    """The address to connect to. One private address among public ones denies all: that is how rebinding looks."""
    if not addresses:
        raise Denied("no_such_name", f"{name} has no address")
    for text in addresses:
        address = ipaddress.ip_address(text.split("%")[0])
        inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
        if not address.is_global or not inner.is_global or address.is_multicast:
            raise Denied("private_address", f"{name} leads to {text}, which is not a public address")
    return addresses[0]
