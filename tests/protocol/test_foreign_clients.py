"""Clients that others wrote, in a virtual environment of their own, against the whole server on a real model.

`tests/protocol/foreign/setup.sh` makes the environment; without it these tests are skipped.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "foreign"
CLIENTS = Path(__file__).parents[2] / ".peer" / "clients" / "bin"
OFFLINE = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "LANGSMITH_TRACING": "false",
}


@pytest.fixture
def call(real_server, tmp_path):
    """Run a command of the environment in a folder of its own; answers what it printed."""

    def run(command: str, *arguments: str, timeout_s: float = 100, **environment: str) -> str:
        if not (CLIENTS / command).exists():
            pytest.skip(f"no {command} in .peer/clients: run tests/protocol/foreign/setup.sh")
        done = subprocess.run(
            [CLIENTS / command, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            timeout=timeout_s,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | OFFLINE | environment,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    yield run
    real_server.wait_until_at_rest()


def test_litellm(call, real_server):
    found = json.loads(call("python", str(HERE / "ask_litellm.py"), f"{real_server.url}/v1"))
    assert "Paris" in found["whole"]
    assert found["streamed"] == found["whole"]
    assert found["usage"][0] == found["usage"][1] > 0
    assert found["completion"].startswith(" ")
    assert "temperature" in found["refusal"]


def test_langchain(call, real_server):
    found = json.loads(call("python", str(HERE / "ask_langchain.py"), f"{real_server.url}/v1"))
    assert "Paris" in found["whole"]
    assert found["streamed"] == found["whole"] == found["responses"]
    assert found["usage"][0] == found["usage"][1] > 0
    for person in found["structured"].values():
        assert set(person) == {"name", "age"}
    assert found["call"]["name"] == "weather"
    assert isinstance(found["call"]["args"]["city"], str)


def test_llm_command(call, real_server, tmp_path):
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: ours\n  model_name: smollm2\n  api_base: {real_server.url}/v1\n  supports_schema: true\n"
        "  supports_tools: true\n"
    )
    home = {"LLM_USER_PATH": str(tmp_path)}
    options = ("-m", "ours", "--key", "none", "-o", "temperature", "0")
    question = "What is the capital of France? Answer in one sentence."
    streamed = call("llm", *options, "-o", "max_tokens", "24", question, **home)
    assert "Paris" in streamed
    assert call("llm", *options, "-o", "max_tokens", "24", "--no-stream", question, **home) == streamed
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer"}},
        "required": ["age"],
        "additionalProperties": False,
    }
    made = call("llm", *options, "--schema", json.dumps(schema), "Invent a person.", **home)
    assert isinstance(json.loads(made)["age"], int)


@pytest.mark.slow
def test_guidellm(call, real_server, tmp_path):
    """A load generator's own view: every request done, tokens counted, no error."""
    folder = write_tokenizer(real_server, tmp_path / "tokenizer")
    report = tmp_path / "report.json"
    call(
        "guidellm", "run",
        "--backend", f"kind=openai_http,target={real_server.url},model=smollm2",
        "--profile", "kind=concurrent,streams=4",
        "--constraint", "kind=max_requests,count=8",
        "--tokenizer", f"kind=hf_auto,model={folder}",
        "--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=16",
        "--output", f"kind=json,path={report}",
    )  # fmt: skip
    benchmark = json.loads(report.read_text())["benchmarks"][0]
    made = benchmark["metrics"]["request_totals"]
    assert made["successful"] == 8
    assert made["errored"] == 0
    assert benchmark["metrics"]["output_token_count"]["successful"]["mean"] == 16


def write_tokenizer(real_server, folder: Path) -> Path:
    """The model's tokenizer as a folder that transformers reads."""
    from transformers import AutoTokenizer

    path = Path(real_server.model_file)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder
