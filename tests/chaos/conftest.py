"""The fixtures of the sandbox's tests."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mortice.sandbox import Sandboxes, cgroups


@pytest.fixture
def sandbox_home(needs_sandboxes: None, tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / "home"
    yield home
    for path in home.glob("**/boxes/b*"):  # of a test that failed
        asyncio.run(cgroups.empty(path.name))


@pytest.fixture
async def boxes(sandbox_home: Path) -> AsyncIterator[Sandboxes]:
    async with Sandboxes(sandbox_home) as found:
        yield found
