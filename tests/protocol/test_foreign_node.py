"""Clients for Node against the whole server on a real model.

Their packages come from the npm registry as package-lock.json has them; without node, npm or the registry these
tests are skipped.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "foreign"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A copy of the scripts with the packages beside them."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("no node and npm here")
    folder = tmp_path_factory.mktemp("node")
    for source in (*HERE.glob("*.json"), *HERE.glob("*.mjs")):
        shutil.copy(source, folder)
    done = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=folder, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    if done.returncode != 0:
        if "EINTEGRITY" in done.stderr or "EUSAGE" in done.stderr:
            pytest.fail(f"package-lock.json is out of step: {done.stderr[-500:]}")
        pytest.skip(f"the packages could not be had: {done.stderr.strip().splitlines()[-1]}")
    return folder


def run(folder: Path, script: str, real_server) -> dict:
    done = subprocess.run(
        ["node", script, f"{real_server.url}/v1"],
        cwd=folder, capture_output=True, text=True, check=False, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    real_server.wait_until_at_rest()
    return json.loads(done.stdout)


def test_openai_for_node(folder, real_server):
    found = run(folder, "ask_openai.mjs", real_server)
    assert "Paris" in found["whole"]
    assert found["whole"] == found["iterated"] == found["heard"] == found["helped"] == found["response"]
    assert found["tokens"][0] == found["tokens"][1] > 0
    assert found["call"]["name"] == "weather"
    assert set(found["call"]["args"]) == {"city"}
    assert found["aborted"] == 4
    assert found["refusal"] == {"name": "BadRequestError", "status": 400, "param": "temperature"}


def test_ai_sdk(folder, real_server):
    found = run(folder, "ask_ai_sdk.mjs", real_server)
    assert "Paris" in found["whole"]
    assert found["streamed"] == found["whole"]
    assert found["tokens"][0] == found["tokens"][1] > 0
    assert set(found["person"]) == {"name", "age"}
    assert found["calls"]
    assert all(call["name"] == "weather" and set(call["args"]) == {"city"} for call in found["calls"])
