"""Server-sent events out of a body that arrives in pieces, cut anywhere."""

from collections.abc import Iterator


class SSEReader:
    """Feed it pieces, get the data of each whole event. Comments and other fields are passed over, as the
    format says."""

    def __init__(self) -> None:
        self._tail = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Data of every event that `piece` completes: its data lines, joined by newlines."""
        lines = (self._tail + piece).split(b"\n")
        self._tail = lines.pop()
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            elif not line and self._data:
                data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                self._data = []
                yield data
