"""Calibration from measured rows, the guards before it, and the files it comes from. All data here are made up."""

import json
import subprocess
import sys

import numpy as np
import pytest

from mortice.cost import Formats, Kernels, Layout, decode_step
from mortice.cost.aic import copied_tables, import_tables, version_key, wheel_folder
from mortice.cost.calibration import calibrate, held_out_report, shipped_calibration
from mortice.cost.collective_fit import fit_collective
from mortice.cost.guards import guarded
from mortice.cost.modelled import modelled
from mortice.cost.profile_table import FEATURES, ProfileTable, read_profile
from mortice.cost.serving import EngineFit, fit_engine, loop_terms, tpot_s
from mortice.specs.catalogue import load_hardware, load_model
from mortice.specs.errors import NotFound, RequestError

H200 = load_hardware("h200")


def gemm_table(slower=1.7, rows=400, seed=7):
    """Rows that are `slower` than the model, and slower still where n is large."""
    draw = np.random.default_rng(seed)
    features = {name: 2.0 ** draw.integers(5, 14, rows) for name in ("m", "n", "k")}
    table = ProfileTable(
        hardware="h200",
        operator="gemm",
        variant="bf16",
        features=features,
        seconds=np.ones(rows),
        source=f"made up, seed {seed}",
    )
    seconds = modelled(table, Kernels(H200)) * slower * (1 + 0.02 * np.log2(features["n"]))
    return ProfileTable(**{f: getattr(table, f) for f in table.__struct_fields__} | {"seconds": seconds})


def changed(table, **fields):
    return ProfileTable(**{f: getattr(table, f) for f in table.__struct_fields__} | fields)


def test_a_calibrated_model_gives_back_what_was_measured():
    table = gemm_table()
    kernels = Kernels(H200, calibrate([table], H200))
    f = table.features
    assert kernels.gemm(f["m"], f["n"], f["k"], "bf16") == pytest.approx(table.seconds, rel=0.03)


def test_error_on_rows_and_shapes_that_were_held_out():
    for by in ("rows", "shapes"):
        (score,) = held_out_report([gemm_table()], H200, by=by)
        assert score.median_error < 0.05 < score.median_uncalibrated
        assert score.rows > 20


def test_other_operators_and_dtypes_keep_the_plain_model():
    calibration = calibrate([gemm_table()], H200)
    assert calibration.covers == (("gemm", "bf16"),)
    assert Kernels(H200, calibration).gemm(64, 4096, 4096, "fp8") == Kernels(H200).gemm(64, 4096, 4096, "fp8")


def test_far_from_any_row_is_called_extrapolated():
    calibration = calibrate([gemm_table()], H200)
    near, far = Kernels(H200, calibration), Kernels(H200, calibration)
    near.gemm(64, 4096, 4096, "bf16")
    assert not calibration.extrapolated
    far.gemm(64, 2.0**20, 2.0**20, "bf16")
    assert calibration.extrapolated == {("gemm", "bf16")}
    assert any(each.value == "extrapolated" for each in far.assumptions())


def test_rows_of_another_card_are_refused():
    with pytest.raises(RequestError, match="h200"):
        calibrate([gemm_table()], load_hardware("h800"))


def test_guards_drop_what_no_kernel_can_do():
    """Hard case 16: impossible, unsound and odd rows go, the report counts them."""
    table = gemm_table()
    seconds = table.seconds.copy()
    seconds[:3] = [np.nan, -1.0, 0.0]
    seconds[3:8] *= 1e-3
    seconds[20] *= 30
    clean, report = guarded(changed(table, seconds=seconds), H200)
    assert report.dropped["not a time"] == 3
    assert report.dropped["faster than the roofline"] == 5
    assert report.dropped["outlier"] == 1
    assert report.kept == len(clean) == len(table) - 9


def test_a_harness_floor_is_found_and_large_rows_survive():
    draw = np.random.default_rng(3)
    table = gemm_table(slower=1.1)
    features = {name: 2.0 ** draw.integers(4, 15, 3000) for name in ("m", "n", "k")}
    table = changed(table, features=features, seconds=np.ones(3000))
    honest = modelled(table, Kernels(H200))
    clean, report = guarded(changed(table, seconds=np.maximum(honest, 150e-6)), H200)
    assert report.floor_us == pytest.approx(150, rel=0.01)
    assert report.dropped["harness floor"] > 500
    assert (clean.seconds > 400e-6).sum() == (honest > 400e-6).sum()
    assert guarded(changed(table, seconds=honest), H200)[1].floor_us == 0


def test_a_slow_kernel_is_kept_and_named():
    """Hard case 15: MFA's shape, 50 times off the roofline, is a fact about the engine."""
    grid = np.array(
        [(b, c, 64, 1, 256, 1) for b in (16, 32, 64, 128) for c in (4096, 8192, 16384, 32768)], float
    )
    features = dict(zip(FEATURES["decode_attention"], grid.T, strict=True))
    table = ProfileTable(
        hardware="h200",
        operator="decode_attention",
        variant="bf16",
        features=features,
        seconds=np.ones(len(grid)),
        source="made up",
    )
    table = changed(table, seconds=50 * modelled(table, Kernels(H200)))
    _, report = guarded(table, H200)
    assert report.kept == len(grid)
    assert "64 query heads on 1 KV heads of 256" in report.slow_kernels[0]
    layer = load_model("step-3").groups[0].attention
    slow = Kernels(H200, calibrate([table], H200)).decode_attention(layer, 64, 8192)
    assert slow > 30 * Kernels(H200).decode_attention(layer, 64, 8192)


def profile_document(**fields):
    row = {"operator": "gemm", "variant": "bf16", "features": {"m": 1, "n": 2, "k": 3}, "seconds": 1e-5}
    return {
        "schema": "mortice.profile/1",
        "hardware": "h200",
        "device": "x",
        "software": "y",
        "date": "2026-01-01",
        "rows": [row],
    } | fields


def test_a_profile_file_is_read_into_tables(tmp_path):
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(profile_document()))
    (table,) = read_profile(file)
    assert (table.operator, len(table), table.hardware) == ("gemm", 1, "h200")
    assert table.matrix().tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"schema": "other/1"}, "schema"),
        ({"rows": [{"operator": "magic", "variant": "bf16", "features": {}, "seconds": 1}]}, "magic"),
        ({"rows": [{"operator": "gemm", "variant": "bf16", "features": {"m": 1}, "seconds": 1}]}, "m, n, k"),
        ({"extra": 1}, "extra"),
        ({"rows": 3}, "rows"),
    ],
)
def test_a_wrong_profile_file_is_one_line(tmp_path, fields, named):
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(profile_document(**fields)))
    with pytest.raises(RequestError, match=named) as caught:
        read_profile(file)
    assert "\n" not in caught.value.message


def test_the_h200_profile_that_ships_calibrates():
    calibration = shipped_calibration(H200)
    assert ("decode_attention", "bf16") in calibration.covers
    assert shipped_calibration(load_hardware("h800")) is None
    step = decode_step(load_model("llama-3.1-8b"), Kernels(H200, calibration), Layout(tp=1), 64, 4096.0)
    plain = decode_step(load_model("llama-3.1-8b"), Kernels(H200), Layout(tp=1), 64, 4096.0)
    assert 0.5 < step.total_s / plain.total_s < 2
    assert any(each.value == "measured" for each in step.assumed)


def wheel(tmp_path, name="gemm/vllm/0.24.0/gemm_perf", **columns):
    """A folder laid out as the wheel is, with one table."""
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    path = tmp_path / "systems" / "data" / "h200_sxm" / f"{name}.parquet"
    path.parent.mkdir(parents=True)
    parquet.write_table(pyarrow.table(columns), path)
    return tmp_path


def test_tables_are_imported_with_milliseconds_and_the_fastest_kernel(tmp_path):
    folder = wheel(
        tmp_path,
        gemm_dtype=["bfloat16", "bfloat16", "fp8", "unheard_of"],
        m=[8, 8, 8, 8],
        n=[64, 64, 64, 64],
        k=[32, 32, 32, 32],
        latency=[0.5, 0.25, 0.125, 9.0],
    )
    tables = {table.variant: table for table in import_tables("h200", "vllm", folder)}
    assert set(tables) == {"bf16", "fp8"}
    assert tables["bf16"].seconds.tolist() == [2.5e-4]


def test_a_table_that_was_copied_from_another_card_is_found(tmp_path):
    """Hard case 16: rows equal to the last digit on two systems were measured on one of them at most."""
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")

    def write(system, latency):
        path = tmp_path / "systems" / "data" / system / "gemm" / "vllm" / "0.24.0" / "gemm_perf.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {
            "gemm_dtype": ["fp8"] * 3,
            "m": [1, 2, 4],
            "n": [64] * 3,
            "k": [32] * 3,
            "latency": latency,
        }
        parquet.write_table(pyarrow.table(columns), path)

    write("h100_sxm", [0.5, 0.25, 0.125])
    write("h200_sxm", [0.5, 0.25, 0.125])
    write("b200_sxm", [0.5, 0.25, 0.126])
    copied = copied_tables("h200", tmp_path)
    assert list(copied.values()) == [["h100_sxm"]]
    assert copied_tables("b200", tmp_path) == {}


def test_the_newest_version_wins_and_errors_are_one_line(tmp_path):
    assert max(["1.3.0rc5", "1.3.0rc20", "0.9.1"], key=version_key) == "1.3.0rc20"
    with pytest.raises(NotFound, match="h20"):
        import_tables("h20", "vllm", tmp_path)
    with pytest.raises(NotFound, match="systems/data"):
        wheel_folder(tmp_path)
    (tmp_path / "systems" / "data").mkdir(parents=True)
    with pytest.raises(NotFound, match="no tables"):
        import_tables("h200", "vllm", tmp_path)
    with pytest.raises(NotFound, match="framework"):
        import_tables("h200", "vlm", tmp_path)


def test_collectives_are_a_line_in_each_range_of_sizes():
    moved = 2.0 ** np.arange(8, 31)
    seconds = 12e-6 + 2 * 7 / 8 * moved / 4.4e11
    fit = fit_collective("all_reduce", 8, moved, seconds)
    assert fit.median_error < 1e-6
    assert fit.bus_bytes_per_s == pytest.approx(4.4e11)
    with pytest.raises(RequestError, match="broadcast"):
        fit_collective("broadcast", 8, moved, seconds)


def test_an_engines_fit_finds_its_three_coefficients():
    concurrency = 2.0 ** np.arange(0, 9)
    prompt = np.where(np.arange(9) % 2, 1024.0, 8192.0)
    terms = loop_terms(
        load_model("llama-3.1-8b"),
        Kernels(H200),
        Layout(tp=1),
        concurrency,
        prompt,
        1024.0,
        Formats(),
        colocated=True,
    )
    truth = EngineFit(decode=1.2, prefill=0.8, overhead_s=0.003)
    found = fit_engine(terms, tpot_s(terms, truth), "made up")
    assert (found.decode, found.prefill, found.overhead_s) == pytest.approx((1.2, 0.8, 0.003), rel=1e-3)
    assert (terms[:, 1] > 0).all()
    apart = loop_terms(
        load_model("llama-3.1-8b"), Kernels(H200), Layout(tp=1), 8, 1024, 1024, Formats(), colocated=False
    )
    assert apart[1] == 0
    with pytest.raises(RequestError, match="six"):
        fit_engine(terms[:5], np.ones(5), "too few")


def test_importing_the_room_loads_neither_torch_nor_scipy():
    code = "import sys, mortice.cost; print(sorted({'torch', 'scipy', 'pyarrow', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
