"""The fixtures of the sandbox's tests."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mortice.sandbox import Sandboxes
from mortice.sandbox.images import find_image, find_program


@pytest.fixture
def sandbox_home(tmp_path: Path) -> Path:
    if os.geteuid() != 0 or find_program("runsc") is None or find_image("base") is None:
        pytest.skip(
            "needs root and what `mortice sandbox setup` installs (runsc, a guest's root file system)"
        )
    return tmp_path / "home"


@pytest.fixture
async def boxes(sandbox_home: Path) -> AsyncIterator[Sandboxes]:
    async with Sandboxes(sandbox_home) as found:
        yield found
