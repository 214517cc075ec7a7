"""Pinned tool descriptions. What a server says of its tools is written by a stranger and read by the model: it is pinned
when first seen (or approved), and a tool whose text changes is withheld until a human pins it anew.
"""

import fcntl
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mcp_types as types
import msgspec

from mortice.agent.mcp.config import McpServer

_PHRASES = re.compile(
    r"ignore (all |any |the )?(previous|prior|above)|do not (tell|mention|inform|reveal)|<\s*(important|system|secret)"
    r"|without (telling|informing|asking) the user|before using (this|any) (other )?tool|system prompt"
    r"|\.ssh|id_rsa|api[_ ]key",
    re.IGNORECASE,
)
_MAX_TEXT = 8_000


class Pins:
    """A file, `{server: {tool: digest}}`, shared by the processes of a user."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def known(self, server: str) -> dict[str, str] | None:
        """Digests by tool; None if the server was never seen."""
        found = self._read().get(server)
        return found if isinstance(found, dict) else None

    def pin(self, server: str, digests: dict[str, str]) -> None:
        with self._locked():
            everything = self._read()
            everything[server] = digests
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(json.dumps(everything, indent=1, sort_keys=True))
            os.replace(temporary, self._path)

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        return found if isinstance(found, dict) else {}

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path.with_suffix(".lock"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def server_id(name: str, server: McpServer) -> str:
    """Another command or address under the same name is another server."""
    where = [server.command, *server.args, server.url]
    return f"{name}:{hashlib.sha256(json.dumps(where).encode()).hexdigest()[:12]}"


def digest(tool: types.Tool) -> str:
    """Of all that the model or the host will read of a tool."""
    seen = tool.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"meta", "icons"})
    return hashlib.sha256(msgspec.json.encode(seen, order="deterministic")).hexdigest()


def suspicion(tool: types.Tool) -> str | None:
    """Why a description should be read by a human first: invisible characters, words that command the model."""
    text = json.dumps(
        tool.model_dump(mode="json", exclude_none=True, exclude={"meta", "icons"}), ensure_ascii=False
    )
    hidden = {unicodedata.name(c, hex(ord(c))) for c in text if unicodedata.category(c) in ("Cf", "Co", "Cn")}
    if hidden:
        return f"it has invisible characters ({', '.join(sorted(hidden)[:3])})"
    found = _PHRASES.search(text)
    if found:
        return f"it speaks to the model ({found[0]!r})"
    if len(tool.description or "") > _MAX_TEXT:
        return f"its description is longer than {_MAX_TEXT} characters"
    return None
