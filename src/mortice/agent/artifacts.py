"""Files that came out of a run, kept by the hash of what they hold: large results, pictures, full texts."""

import hashlib
import os
import tempfile
from pathlib import Path

from mortice.agent.history import File
from mortice.specs.errors import NotFound, RequestError

MAX_BYTES = 64 << 20


class Artifacts:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, data: bytes, media_type: str) -> File:
        """Durable when it returns. RequestError above 64 MiB."""
        if len(data) > MAX_BYTES:
            raise RequestError(f"{name}: {len(data)} bytes, at most {MAX_BYTES} are kept", param="artifact")
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        name = name.replace("/", "_").strip() or "file"
        return File(name=name[:200], media_type=media_type, size_bytes=len(data), uri=f"artifact://{digest}")

    def get(self, uri: str) -> bytes:
        """What was put, its hash checked."""
        digest = uri.removeprefix("artifact://")
        path = self._path(digest)
        if len(digest) != 64 or not digest.isalnum() or not path.exists():
            raise NotFound(f"there is no {uri}", param="artifact")
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise NotFound(f"{uri} was damaged on disk", param="artifact")
        return data

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest
