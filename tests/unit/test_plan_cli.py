"""`mortice plan` from outside: the commands of the outside checks, every verb, one line a mistake."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mortice.cli import app
from mortice.cli.plan import plan
from mortice.plan.inputs import STEP3_MODELS
from mortice.specs.catalogue.load import HERE
from mortice.specs.deployment import load_deployment
from mortice.specs.errors import RequestError

RUNNER = CliRunner()


def run(*args: str) -> str:
    done = RUNNER.invoke(app, ["plan", *args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def fails(*args: str) -> RequestError:
    done = RUNNER.invoke(app, ["plan", *args])
    assert isinstance(done.exception, RequestError), (done.exit_code, done.output, done.exception)
    return done.exception


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A local folder with a config.json."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    shutil.copy(HERE / "models" / "qwen3-30b-a3b.json", folder / "config.json")
    return folder


def test_the_verbs_are_these() -> None:
    assert sorted(command.name or "" for command in plan.registered_commands) == sorted(
        ["roofline", "cost", "density", "afd", "ep", "supernode", "kv", "design", "compare", "explain", "deploy",
         "report", "place", "profile", "calibrate"]
    )  # fmt: skip


@pytest.mark.parametrize("context", ["8192", "32768"])
def test_cost_of_all_models_as_published(context: str) -> None:
    rows = json.loads(
        run("cost", "--model", "all", "--hardware", "h800,h20,a800,ascend-910b", "--context", context,
            "--convention", "published", "--json")
    )  # fmt: skip
    assert len(rows) == 36
    assert {r["model"] for r in rows} == set(STEP3_MODELS)
    assert {"model", "hardware", "context", "attention_usd_per_mtok", "ffn_usd_per_mtok"} <= set(rows[0])
    assert {r["context"] for r in rows} == {int(context)}


def test_density_as_published() -> None:
    answer = json.loads(
        run("density", "--model", "deepseek-v3", "--hardware", "h800", "--convention", "published", "--json")
    )
    assert round(answer["min_density"], 3) == 0.058
    assert answer["num_experts_needed"] == 14
    assert answer["assumed"]


def test_explain_a_table() -> None:
    answer = json.loads(run("explain", "step3.table6", "--json"))
    assert answer["num_cells"] == answer["num_agreeing"] == 108


def test_report_of_a_config_file(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    run("report", "--model", str(config / "config.json"), "--hardware", "h200,h20", "--out", str(out))
    page = out.read_text()
    for part in ("<svg", "prefers-color-scheme: dark", "my-model", "Assumed values", "var(--c0)"):
        assert part in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "")
    assert "https://" not in page


def test_a_folder_works_in_place_of_a_name(config: Path) -> None:
    rows = json.loads(run("cost", "--model", str(config), "--hardware", "h200", "--json"))
    assert rows[0]["model"] == "my-model"


VERBS = {
    "roofline": ["--model", "step-3,deepseek-v3", "--hardware", "h800,h20"],
    "cost": ["--model", "step-3", "--hardware", "h800,h20"],
    "density": ["--model", "step-3", "--hardware", "h800,h20"],
    "afd": ["--model", "step-3", "--hardware", "h20/h800", "--packages", "64"],
    "ep": ["--model", "deepseek-v3", "--hardware", "h800"],
    "supernode": ["--model", "deepseek-v3", "--rack", "gb200-nvl72,vera-rubin-nvl144-cpx"],
    "kv": ["--model", "qwen3-32b", "--hardware", "h200,l20"],
    "design": [],
    "compare": ["--model", "step-3", "--plan", "h800", "--plan", "h20/h800"],
    "deploy": ["--model", "llama-3.1-8b", "--hardware", "h200", "--packages", "4"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_gives_a_table_json_and_a_picture(verb: str, tmp_path: Path) -> None:
    options = VERBS[verb]
    shown = run(verb, *options)
    assert "assumed, because not given" in shown
    for kind, magic in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        picture = tmp_path / f"picture.{kind}"
        document = json.loads(run(verb, *options, "--json", "--plot", str(picture)))
        assert picture.read_bytes().startswith(magic)
    rows = document if verb == "cost" else [document]
    assert all(row["assumed"] for row in rows)


def test_a_trace_stands_in_for_the_context() -> None:
    trace = Path(__file__).parents[1] / "data" / "azure2023_conv_head.csv"
    answer = json.loads(
        run(
            "afd",
            "--model",
            "step-3",
            "--hardware",
            "h800",
            "--packages",
            "32",
            "--trace",
            str(trace),
            "--json",
        )
    )
    said = next(a for a in answer["assumed"] if a["name"] == "context")
    assert "azure2023_conv_head.csv, 40 requests" in said["why"]
    assert answer["ratio"]["simulated"] > 0
    assert "no Azure, Mooncake or BurstGPT" in fails("afd", "--model", "step-3", "--trace", __file__).message


def test_the_deployment_document_is_what_serve_reads(tmp_path: Path) -> None:
    out = tmp_path / "deployment.yaml"
    run(
        "deploy",
        "--model",
        "llama-3.1-8b",
        "--hardware",
        "h200",
        "--packages",
        "4",
        "--serve-model",
        "/models/l",
        "--out",
        str(out),
    )
    made = load_deployment(out)
    assert made.model == "/models/l"
    assert made.prefill + made.decode == 4
    assert out.read_text().startswith("# Written by mortice plan deploy")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["cost", "--model", "no-such-model"], "no-such-model"),
        (["cost", "--hardware", "h8000"], "h800"),
        (["cost", "--model", "step-3", "--context", "many"], "context"),
        (["cost", "--model", "step-3", "--hardware", "h800", "--price", "h800=-1"], "price"),
        (["cost", "--model", "step-3", "--hardware", "ascend-910c"], "no price"),
        (["cost", "--model", "step-3", "--kv", "fp3"], "fp3"),
        (["cost", "--model", "step-3", "--drafted", "1", "--accepted", "3"], "accepted"),
        (["cost", "--model", "step-3", "--plot", "a.gif"], "--plot"),
        (["density", "--model", "qwen3-32b"], "no experts"),
        (["density", "--model", "step-3", "--net", "0"], "net"),
        (["density", "--model", "step-3", "--tpot", "-1"], "tpot"),
        (["afd", "--model", "qwen3-32b"], "no experts"),
        (["afd", "--model", "step-3", "--tpot", "1"], "nearest feasible"),
        (["afd", "--model", "step-3", "--packages", "8"], "nearest feasible is 16"),
        (["afd", "--model", "step-3", "--num-ffn", "2"], "together"),
        (["afd", "--model", "step-3", "--imbalance", "0.5"], "imbalance"),
        (["afd", "--model", "step-3", "--imbalance", "nan"], "imbalance"),
        (["afd", "--model", "step-3", "--micro-batches", "0"], "micro_batches must be 1 to 16"),
        (["afd", "--model", "step-3", "--num-attention", "-1", "--num-ffn", "2"], "num_attention must be 1"),
        (["afd", "--model", "step-3", "--tpot", "nan"], "tpot must be above 0"),
        (["supernode", "--model", "step-3", "--tpot", "-3"], "tpot must be above 0"),
        (["compare", "--model", "step-3", "--plan", "h800", "--plan", "h20", "--tpot", "0.001"], "meets 0.001 ms"),
        (["kv", "--model", "qwen3-32b", "--hardware", "h200", "--profile", "/no/such"], "cannot read /no/such"),
        (["ep", "--model", "deepseek-v3", "--tokens", "99999999999"], "at most 1,048,576"),
        (["design", "--active", "1e9"], "active"),
        (["design", "--hidden", "9999999"], "hidden"),
        (["afd", "--model", "step-3", "--hardware", "a/b/c"], "hardware"),
        (["ep", "--model", "deepseek-v3", "--tokens", "0"], "tokens"),
        (["supernode", "--model", "deepseek-v3", "--rack", "nvl73"], "nvl73"),
        (["kv", "--model", "deepseek-v3", "--hardware", "l4"], "do not fit"),
        (["design", "--rank", "900000"], "nearest rank"),
        (["design", "--active", "-1"], "active"),
        (["compare", "--model", "step-3", "--plan", "h800"], "two or more"),
        (["explain", "step3.table99"], "step3.table6"),
        (["explain", "cost.unit", "--model", "step-3"], "--hardware"),
        (["deploy", "--model", "deepseek-v3", "--hardware", "h200", "--packages", "8"], "one package a worker"),
        (["deploy", "--model", "llama-3.1-8b", "--packages", "2", "--target", "2"], "target"),
        (["deploy", "--model", "llama-3.1-8b", "--packages", "2", "--weights", "fp8"], "weights"),
        (["report", "--model", "step-3", "--out", "/no/such/folder/report.html"], "--out"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_line_that_names_the_field(arguments: list[str], named: str) -> None:
    error = fails(*arguments)
    assert named in f"{error.param}: {error.message}"
    assert "\n" not in error.message


BAD_CONFIGS = {
    "a list": ("[1]", "a config is a JSON object"),
    "a number": ("3", "a config is a JSON object"),
    "nothing": ("", "not JSON"),
    "binary": (bytes(range(256)) * 10, "not JSON"),
    "nested beyond reason": ("[" * 100_000, "not JSON"),
    "NaN": ('{"model_type": "llama", "hidden_size": NaN}', "not JSON"),
    "out of range": ('{"model_type": "llama", "hidden_size": 1e400}', "not JSON"),
    "a float": (
        '{"model_type": "llama", "num_attention_heads": 4096.5}',
        "num_attention_heads must be an integer",
    ),
    "text": (
        '{"model_type": "llama", "num_attention_heads": "wide"}',
        "num_attention_heads must be an integer",
    ),
    "true": (
        '{"model_type": "llama", "num_attention_heads": true}',
        "num_attention_heads must be an integer",
    ),
    "huge": ('{"model_type": "llama", "num_attention_heads": 1000000000000000000000}', "must be at most"),
    "no type": ("{}", "model_type is None; supported are"),
    "an empty wrapper": ('{"model_type": "llama4", "text_config": [1]}', "text_config must be an object"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_file_that_is_no_config_is_one_line(case: str, tmp_path: Path) -> None:
    content, named = BAD_CONFIGS[case]
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    error = fails("cost", "--model", str(tmp_path), "--hardware", "h800")
    assert named in error.message
    assert str(path) in error.message
    assert "\n" not in error.message


def test_a_folder_without_a_config_says_so(tmp_path: Path) -> None:
    assert "there is no config.json" in fails("cost", "--model", str(tmp_path), "--hardware", "h800").message


def test_a_size_that_the_family_does_not_know_is_listed(config: Path) -> None:
    """It may make a variant that costs something else; what cannot change a cost stays silent."""
    path = config / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"latent_expert_size": 512, "rope_mixture_warp": 3, "top_k": 50}))
    rows = json.loads(run("cost", "--model", str(config), "--hardware", "h200", "--json"))
    said = [line for line in rows[0]["assumed"] if "not known of this family" in line]
    assert len(said) == 1
    assert "latent_expert_size = 512" in said[0]


def test_cards_without_a_price_are_left_out_of_all(config: Path) -> None:
    rows = json.loads(run("cost", "--model", str(config), "--hardware", "all", "--json"))
    assert {"h800", "h200"} < {row["hardware"] for row in rows}
    assert "rubin-cpx" not in {row["hardware"] for row in rows}
    assert "--price rubin-cpx=" in fails("cost", "--model", str(config), "--hardware", "rubin-cpx").message


def test_a_config_that_is_wrong_names_the_field(config: Path) -> None:
    path = config / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in values.items() if k != "hidden_size"}))
    assert "hidden_size" in fails("cost", "--model", str(config)).message
