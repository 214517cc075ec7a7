"""The soak of benchmarks/soak.py, cut to two minutes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mortice.models.store import locate

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_two_minutes_at_capacity(tmp_path):
    if locate("smollm2") is None:
        pytest.skip("SmolLM2 is not here: run `mortice pull smollm2`")
    command = [sys.executable, str(SCRIPT), "--ci", "--output", str(tmp_path / "soak.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    report = json.loads(done.stdout)
    assert report["problems"] == []
    assert done.returncode == 0, done.stderr
    assert report["requests"]
