"""Found constants in a file: an entry for a kernel, its target, the processor, and types and shapes of the arguments."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mortice.tile.arguments import Argument
from mortice.tile.diagnostics import NOWHERE, ArgumentError

VERSION = 1
LARGEST = 16 << 20  # bytes of a file that is read


@dataclass
class Schedules:
    """entries: by key, what `add` was given. Values of constants are numbers, texts and bools."""

    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> "Schedules":
        """Raises ArgumentError if the file is no such file. No file is an empty one."""
        path = Path(path)
        if not path.exists():
            return cls()
        try:
            if path.stat().st_size > LARGEST:
                raise ValueError(f"it has more than {LARGEST} bytes")
            data = json.loads(path.read_text())
            if data["version"] != VERSION:
                raise ValueError(f"its version is {data['version']}, not {VERSION}")
            entries = dict(data["entries"])
            for entry in entries.values():
                if not all(isinstance(x, int | float | bool | str) for x in entry["constants"].values()):
                    raise ValueError("a constant is no number or text")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"{path} holds no schedules: {error}"
            raise ArgumentError(
                NOWHERE, "schedules", problem, "write it anew with `mortice tile tune`"
            ) from error
        return cls(entries)

    def write(self, path: str | Path) -> None:
        """Whole or not at all."""
        path = Path(path)
        text = (
            json.dumps({"version": VERSION, "entries": dict(sorted(self.entries.items()))}, indent=1) + "\n"
        )
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(name, path)

    def add(
        self, kernel: str, target: str, machine: str, views: Mapping[str, Argument], entry: dict[str, Any]
    ) -> None:
        self.entries[key(kernel, target, machine, views)] = entry

    def find(
        self, kernel: str, target: str, machine: str, views: Mapping[str, Argument]
    ) -> dict[str, Any] | None:
        entry = self.entries.get(key(kernel, target, machine, views))
        return dict(entry["constants"]) if entry else None

    def on(self, machine: str) -> Callable[[str, str, dict[str, Argument]], dict[str, Any] | None]:
        """What `Kernel.replaying` takes: `kernel.replaying(Schedules.read(path).on(this_cpu().name))`."""
        return lambda kernel, target, views: self.find(kernel, target, machine, views)


def key(kernel: str, target: str, machine: str, views: Mapping[str, Argument]) -> str:
    shapes = ", ".join(f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in views.values())
    return f"{kernel}({shapes}) on {target}, {machine}"
