"""`mortice tile`: the kernels in the kernel language, checked, explained, measured and written out."""

import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from mortice.cli.tile_tune import Settings, parsed_space, table, tuned
from mortice.specs.errors import RequestError

tile = typer.Typer(name="tile", help="Kernels in the kernel language.", no_args_is_help=True)
AsJson = typer.Option(False, "--json", help="Print one JSON document.")
Shape = typer.Option("", "--shape", help="Sizes, as `mortice tile list` names them: 4096,4096,4096.")
Names = typer.Argument(None, help="Kernels.")
Dtype = typer.Option("bf16", "--dtype", help="Element type of the tensors.")
Plot = typer.Option(None, "--plot", help="Draw a tile's layout and the pipeline's timeline: a PNG.")
Replayed = typer.Option(
    None, "--file", help="Replay from here if the result stands in it, else measure and add it."
)
Seconds = typer.Option(
    300.0,
    "--seconds",
    min=0.1,
    help="Give up on one kernel after so many: the command ends with exit code 1.",
)
Space = typer.Option([], "--space", help="Other values to try: BM=64,128. Repeat for more constants.")


@contextmanager
def request() -> Iterator[None]:
    """What is wrong with a shape or a target for a kernel is the request's fault."""
    from mortice.tile.diagnostics import TileError

    try:
        yield
    except TileError as error:
        raise RequestError(str(error)) from error


@contextmanager
def limited(seconds: float, give_up: Callable[[], None]) -> Iterator[None]:
    """Compiled code cannot be stopped from within its process, so a kernel that does not end ends the command."""

    def end() -> None:
        give_up()
        sys.stdout.flush()
        os._exit(1)

    watch = threading.Timer(seconds, end)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def kernels() -> dict[str, Any]:
    from mortice.ops.kernels.cases import CASES  # torch takes seconds to load: not for --help

    return CASES


def chosen(name: str) -> Any:
    cases = kernels()
    if name not in cases:
        raise RequestError(f"there is no kernel {name}; `mortice tile list` names them", param="kernel")
    return cases[name]


def specs(name: str, shape: str, dtype: str) -> tuple[Any, ...]:
    """Arguments without data."""
    from mortice.tile.dtypes import BY_NAME

    case = chosen(name)
    if case.specs is None:
        raise RequestError(f"{name} takes no shape from here", param="shape")
    try:
        sizes = tuple(int(part) for part in shape.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) != len(case.shape.split(",")) or min(sizes) < 1 or max(sizes) > 2**31:
        raise RequestError(
            f"{name} wants {case.shape}, as in --shape {','.join(['64'] * len(case.shape.split(',')))}",
            param="shape",
        )
    if dtype not in BY_NAME:
        raise RequestError(f"there is no element type {dtype}", param="dtype")
    arguments: tuple[Any, ...] = case.specs(sizes, BY_NAME[dtype])
    return arguments


def shown(name: str, shape: str, dtype: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments without data, and constants: of a shape, or of the trial that `check` makes with seed 0."""
    from mortice.ops.kernels.cases import Draw
    from mortice.tile.arguments import Spec, view

    if shape:
        return specs(name, shape, dtype), {}
    if dtype != "bf16":
        raise RequestError("--dtype goes with --shape: without, types are those of a trial", param="dtype")
    trial = chosen(name).trial(Draw(f"{name} 0 0"))
    views = [view(x) if hasattr(x, "data_ptr") else x for x in trial.arguments]
    arguments = tuple(Spec(x.shape, x.dtype) if hasattr(x, "pointer") else x for x in views)
    return arguments, trial.constants


def drawn(arguments: tuple[Any, ...]) -> list[Any]:
    """With random data in place of specs."""
    import torch

    from mortice.tile.arguments import FOREIGN, Spec

    return [
        torch.randn(x.shape).to(getattr(torch, FOREIGN[x.dtype])) if isinstance(x, Spec) else x
        for x in arguments
    ]


@tile.command("list")
def list_(as_json: bool = AsJson) -> None:
    """Name the kernels and their arguments."""
    rows = [
        {
            "name": name,
            "summary": " ".join((case.kernel.__doc__ or "").split()),
            "arguments": [parameter.name for parameter in case.kernel.parameters],
            "constants": {key: str(value) for key, value in case.kernel.constants.items()},
            "shape": case.shape or None,
        }
        for name, case in kernels().items()
    ]
    if as_json:
        print(json.dumps({"kernels": rows}, indent=1))
        return
    for row in rows:
        print(f"{row['name']:28} {str(row['summary']).split('. ')[0][:120]}")


@tile.command()
def check(
    names: list[str] = Names,
    every: bool = typer.Option(False, "--all", help="All kernels."),
    backend: str = typer.Option("interpreter,c", "--backend", help="Targets, with commas between."),
    seed: int = typer.Option(0, "--seed"),
    trials: int = typer.Option(1, "--trials", min=1, max=1000, help="Of each kernel on each target."),
    seconds: float = Seconds,
    as_json: bool = AsJson,
) -> None:
    """Run kernels on random ragged shapes and compare with PyTorch. Exit code 1 if one differs."""
    from mortice.ops.kernels.cases import Draw
    from mortice.tile.targets import TARGETS

    targets = backend.split(",")
    if missing := [target for target in targets if target not in TARGETS]:
        raise RequestError(
            f"there is no target {missing[0]}; there are {', '.join(TARGETS)}", param="backend"
        )
    if not every and not names:
        raise RequestError("name kernels, or give --all", param="names")
    rows: list[dict[str, Any]] = []

    def finish() -> bool:
        bad = any(row["status"] in ("wrong", "failed") for row in rows)
        if as_json:
            print(json.dumps({"ok": not bad, "checks": rows}, indent=1))
        return bad

    def done(row: dict[str, Any], **found: Any) -> None:
        rows.append(row | found)
        if not as_json:
            said = found.get("error", found.get("reason", ""))
            print(f"{row['kernel']:28} {row['backend']:12} {found['status']:8} {said}", flush=True)

    for name in kernels() if every else names:
        case = chosen(name)
        for number in range(trials):
            trial = case.trial(Draw(f"{name} {seed} {number}"))
            for target in targets:
                row: dict[str, Any] = {"kernel": name, "backend": target, "seed": seed, "trial": number}
                row["shapes"] = [list(x.shape) for x in trial.arguments if hasattr(x, "shape")]
                row["tolerance"] = trial.tolerance

                def too_long(row: dict[str, Any] = row) -> None:
                    done(row, status="failed", reason=f"not done after {seconds:g} s", seconds=seconds)
                    finish()

                start = time.perf_counter()
                with limited(seconds, too_long):
                    found = compared(case.kernel.on(target), trial)
                done(row, **found, seconds=round(time.perf_counter() - start, 3))
    if finish():
        raise typer.Exit(1)


def compared(kernel: Any, trial: Any) -> dict[str, Any]:
    """status, with the error or the reason."""
    from mortice.tile.diagnostics import UnsupportedError

    try:
        error = trial.error(kernel(*trial.arguments, **trial.constants))
    except UnsupportedError as refusal:
        return {"status": "refused", "reason": str(refusal)}
    except Exception as failure:
        return {"status": "failed", "reason": f"{type(failure).__name__}: {failure}"}
    return {"status": "ok" if error <= trial.tolerance else "wrong", "error": error}


@tile.command("build")
def build_ahead() -> None:
    """Compile what the engine runs on this CPU: once a machine, so that no request waits for it."""
    from mortice.ops.ahead import compile_ahead
    from mortice.ops.compiled.build import reason_without

    began, count = time.perf_counter(), 0
    for name in compile_ahead():
        count += 1
        if sys.stderr.isatty():
            print(f"\r\033[K{name}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    why = "" if count else f": {reason_without()}"
    print(f"{count} products are ready, {time.perf_counter() - began:.1f} s{why}")


@tile.command()
def emit(
    name: str,
    target: str = typer.Option("c", "--target"),
    shape: str = Shape,
    dtype: str = Dtype,
    ir: bool = typer.Option(False, "--ir", help="The tile IR instead of the target's source."),
) -> None:
    """Print what a kernel is compiled to; without --shape for the arguments that `check` draws."""
    from mortice.tile.targets import TARGETS

    if target not in TARGETS:
        raise RequestError(f"there is no target {target}; there are {', '.join(TARGETS)}", param="target")
    kernel, (arguments, constants) = chosen(name).kernel.on(target), shown(name, shape, dtype)
    with request():
        sys.stdout.write((kernel.ir if ir else kernel.source)(*arguments, **constants))


@tile.command()
def explain(
    name: str,
    shape: str = Shape,
    dtype: str = Dtype,
    target: str = typer.Option("c", "--target", help="c or sm_90a."),
    plot: Path | None = Plot,
    as_json: bool = AsJson,
) -> None:
    """Say what the compiler decided and why, line by line, what a block needs, and what bounds the kernel."""
    from mortice.tile.explain import report

    if target not in ("c", "sm_90a"):
        raise RequestError("the target is c or sm_90a", param="target")
    kernel, arguments = chosen(name).kernel, specs(name, shape, dtype)
    with request():
        found = report(kernel, arguments, target)
    if plot is not None:
        try:
            from mortice.tile.explain.plot import draw
        except ImportError:
            raise RequestError(
                "pictures need matplotlib: pip install 'mortice[bench]'", param="plot"
            ) from None
        draw(found, name, plot)
    if as_json:
        fields = ("operator", "decision", "reason", "slow", "source")
        rows = [
            {"place": str(note.span)} | {key: getattr(note, key) for key in fields} for note in found.notes
        ]
        document: dict[str, Any] = {
            "kernel": name,
            "target": target,
            "notes": rows,
            "summary": found.summary(),
        }
        document |= {
            "prediction": asdict(found.prediction),
            "resources": [asdict(x) for x in found.resources],
        }
        print(json.dumps(document, indent=1))
        return
    for note in found.notes:
        print(
            f"{note.span}: {note.source}\n    {'slow: ' if note.slow else ''}{note.decision}: {note.reason}"
        )
    print("\n".join(found.summary()))


@tile.command()
def bench(
    name: str,
    shape: str = Shape,
    dtype: str = Dtype,
    rounds: int = typer.Option(20, "--rounds", min=1, max=10000),
    seconds: float = Seconds,
    as_json: bool = AsJson,
) -> None:
    """Time a kernel on this CPU on random data: the median of some rounds."""
    arguments = drawn(specs(name, shape, dtype))
    kernel = chosen(name).kernel
    times = []
    for _ in range(rounds + 1):  # the first one is compiled
        start = time.perf_counter()
        with (
            request(),
            limited(seconds, lambda: print(f"{name}: not done after {seconds:g} s", file=sys.stderr)),
        ):
            kernel(*arguments)
        times.append(time.perf_counter() - start)
    del times[0]
    row = {
        "kernel": name,
        "shape": shape,
        "dtype": dtype,
        "median_ms": statistics.median(times) * 1e3,
        "best_ms": min(times) * 1e3,
    }
    print(
        json.dumps(row)
        if as_json
        else f"{name} {shape} {dtype}: median {row['median_ms']:.3f} ms, best {row['best_ms']:.3f} ms"
    )


@tile.command()
def tune(
    name: str,
    shape: str = Shape,
    dtype: str = Dtype,
    file: Path | None = Replayed,
    top: int = typer.Option(
        6, "--top", min=0, max=1000, help="Measure so many of the model's best; 0: only rank."
    ),
    rounds: int = typer.Option(7, "--rounds", min=1, max=10000),
    space: list[str] = Space,
    clock: str = typer.Option("wall", "--clock", help="wall, or thread: one thread's own processor time."),
    seed: int = typer.Option(0, "--seed", help="Of the order in which candidates run."),
    again: bool = typer.Option(False, "--again", help="Measure even if the file has a result."),
    as_json: bool = AsJson,
) -> None:
    """Find a kernel's fastest constants for a shape on this CPU: all are ranked by a model, the best are measured."""
    if clock not in ("wall", "thread"):
        raise RequestError("the clock is wall or thread", param="clock")
    kernel, arguments = chosen(name).kernel, specs(name, shape, dtype)
    settings = Settings(file, top, rounds, parsed_space(space), clock, seed, again)
    with request():
        document = tuned(kernel, arguments, drawn, settings)
    print(json.dumps(document, indent=1) if as_json else table(document))
