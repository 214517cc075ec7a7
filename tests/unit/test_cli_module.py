"""The command is the same under `python -m mortice`."""

import subprocess
import sys

from mortice import __version__


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "mortice", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == __version__


def test_a_wrong_request_is_one_line_and_exit_code_2():
    command = [sys.executable, "-m", "mortice", "serve", "--dtype", "float8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "dtype" in done.stderr
