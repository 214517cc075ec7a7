"""`mortice plan profile` and `mortice plan calibrate`: measure operators, and see how well they are predicted."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import yaml
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mortice.cost.aic import copied_tables, import_tables
from mortice.cost.calibration import calibrate as calibrate_tables
from mortice.cost.calibration import held_out_report
from mortice.cost.measured_hardware import measured_hardware
from mortice.cost.profile_table import read_profile
from mortice.specs.catalogue import load_hardware
from mortice.specs.errors import RequestError


class GridName(StrEnum):
    quick = "quick"
    full = "full"


class HoldOut(StrEnum):
    rows = "rows"
    shapes = "shapes"


def profile(
    out: Annotated[Path, typer.Option(help="Folder for profile.json and hardware.yaml.")],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    hardware: Annotated[
        str | None,
        typer.Option(help="Catalogue name. Default: a hardware file is written from what is measured."),
    ] = None,
    grid: Annotated[GridName, typer.Option(help="quick: about two minutes on two cores.")] = GridName.quick,
    dtypes: Annotated[str, typer.Option(help="Comma-separated: bf16, fp32, fp8.")] = "bf16",
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Time this machine's operators, so that the cost model knows them. Needs torch."""
    chosen = tuple(dtypes.split(","))
    if unknown := set(chosen) - {"bf16", "fp32", "fp8"}:
        raise RequestError(f"--dtypes has {unknown.pop()!r}; known are bf16, fp32, fp8", param="--dtypes")
    if device not in ("cpu", "cuda"):
        raise RequestError(f"--device is cpu or cuda, not {device!r}", param="--device")
    if "fp8" in chosen and device == "cpu":
        raise RequestError("--dtypes fp8 needs --device cuda", param="--dtypes")
    if hardware is not None:
        load_hardware(hardware)
    if not out.absolute().parent.is_dir():
        raise RequestError(f"--out: there is no folder {out.parent}", param="--out")
    from mortice.ops import profile as bench  # imports torch, which no other verb of `plan` needs

    if device == "cuda" and not bench.gpu_is_there():
        raise RequestError("--device cuda: this machine's torch sees no GPU", param="--device")
    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("operators", total=None)
        document, machine = bench.profile(
            device,
            hardware or "this-machine",
            grid.value,
            chosen,
            lambda what, done: shown.update(task, description=f"{what} ({done} rows)"),
        )
    out.mkdir(exist_ok=True)
    path = out / "profile.json"
    path.write_text(json.dumps(document))
    written = [str(path)]
    if hardware is None:
        found = measured_hardware("this-machine", machine, read_profile(path))
        (out / "hardware.yaml").write_text(yaml.safe_dump(found, sort_keys=False))
        written.append(str(out / "hardware.yaml"))
    result = machine | {"rows": len(document["rows"]), "written": written}
    if as_json:
        print(json.dumps(result))
        return
    print(f"{result['device']}: {result['rows']} rows, copy at {machine['copy_bytes_per_s'] / 1e9:.1f} GB/s")
    print("written: " + ", ".join(written))


def calibrate(
    hardware: Annotated[str, typer.Option(help="Catalogue name or hardware file.")],
    profile: Annotated[
        list[Path] | None, typer.Option(help="Profile file; may be given more than once.")
    ] = None,
    aiconfigurator: Annotated[
        str | None, typer.Option(help="Import tables of that framework: trtllm, sglang or vllm.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Unpacked aiconfigurator-core wheel. Default: the installed package.")
    ] = None,
    held_out: Annotated[HoldOut, typer.Option(help="What the error is measured on.")] = HoldOut.rows,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Check measured operators for bad rows and say how well the cost model predicts rows it has not seen."""
    spec = load_hardware(hardware)
    tables = [table for path in profile or [] for table in read_profile(path)]
    copied: dict[str, list[str]] = {}
    if aiconfigurator is not None:
        tables += import_tables(spec.name, aiconfigurator, folder)
        copied = copied_tables(spec.name, folder)
    if not tables:
        raise RequestError("nothing to calibrate on: give --profile or --aiconfigurator", param="--profile")
    reports = calibrate_tables(tables, spec).reports
    scores = held_out_report(tables, spec, by=held_out.value)
    if as_json:
        document = {
            "guards": msgspec.to_builtins(reports),
            "held_out": msgspec.to_builtins(scores),
            "copied": copied,
        }
        sys.stdout.write(json.dumps(document) + "\n")
        return
    console = Console(soft_wrap=True)
    shown = Table("operator", "dtype", "rows", "dropped", title=f"{spec.title}: rows and guards")
    for r in reports:
        dropped = ", ".join(f"{count} {why}" for why, count in r.dropped.items())
        shown.add_row(r.operator, r.variant, str(r.rows), dropped)
    console.print(shown)
    errors = Table(
        "operator", "dtype", "rows", "median error", "90 %", "uncalibrated",
        title=f"error on held-out {held_out.value}",
    )  # fmt: skip
    for s in scores:
        values = (s.median_error, s.p90_error, s.median_uncalibrated)
        errors.add_row(s.operator, s.variant, str(s.rows), *(f"{value:.1%}" for value in values))
    console.print(errors)
    for name, others in copied.items():
        console.print(f"copied table, no evidence: {name} is the same as on {', '.join(others)}")
    for r in reports:
        for slow in r.slow_kernels:
            console.print(f"no fast kernel: {r.operator} {r.variant}, {slow}")
