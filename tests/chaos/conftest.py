"""The fixtures of the sandbox's tests."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mortice.sandbox import Sandboxes, cgroups
from mortice.sandbox.images import find_image, find_program


@pytest.fixture
def sandbox_home(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0 or find_program("runsc") is None or find_image("base") is None:
        pytest.skip(
            "needs root and what `mortice sandbox setup` installs (runsc, a guest's root file system)"
        )
    home = tmp_path / "home"
    yield home
    for path in (home / "boxes").glob("*"):  # of a test that failed
        asyncio.run(cgroups.empty(path.name))


@pytest.fixture
async def boxes(sandbox_home: Path) -> AsyncIterator[Sandboxes]:
    async with Sandboxes(sandbox_home) as found:
        yield found
