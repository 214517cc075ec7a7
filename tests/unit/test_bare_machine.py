"""A machine that computes needs none of what serves, draws or signs: kernels, models and engines import without it."""

import subprocess
import sys

import pytest

WITHOUT = (
    "cryptography",
    "dbos",
    "httpx",
    "matplotlib",
    "mcp",
    "prometheus_client",
    "rich",
    "starlette",
    "statsmodels",
    "typer",
    "uvicorn",
)

CODE = f"""
import sys

class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {WITHOUT}:
            raise ModuleNotFoundError("No module named " + name)

sys.meta_path.insert(0, Lacking())
"""


@pytest.mark.parametrize("room", ["tile", "ops", "models", "engine.worker", "cluster.live"])
def test_a_room_that_computes_imports_on_a_bare_machine(room):
    done = subprocess.run(
        [sys.executable, "-c", f"{CODE}\nimport mortice.{room}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
