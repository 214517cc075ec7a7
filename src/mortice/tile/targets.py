"""From tile IR to something that runs: the choice of a back end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mortice.tile.c.compile import compile_function as compile_for_c
from mortice.tile.c.compile import emit_function
from mortice.tile.cuda.compile import compile_for_sm_80, compile_for_this_card
from mortice.tile.cuda.compile import compile_function as compile_for_hopper
from mortice.tile.diagnostics import UnsupportedError
from mortice.tile.host import Bound
from mortice.tile.interpreter import interpret
from mortice.tile.ir.printer import text
from mortice.tile.ir.stmt import Function
from mortice.tile.passes import run
from mortice.tile.passes.fission import FISSION
from mortice.tile.passes.panels import PANELS
from mortice.tile.passes.tiling import GPU, tiling
from mortice.tile.simulator.target import simulate_hopper, simulate_sm_80


class Executable(Protocol):
    """source: what was compiled, as text."""

    @property
    def source(self) -> str: ...

    def __call__(self, bound: Bound) -> None: ...


@dataclass
class Interpreted:
    function: Function

    @property
    def source(self) -> str:
        return text(self.function)

    def __call__(self, bound: Bound) -> None:
        interpret(run(self.function, (PANELS, FISSION)), bound)


TARGETS: dict[str, Callable[[Function], Executable]] = {
    "interpreter": Interpreted, "c": compile_for_c, "cuda": compile_for_this_card, "sm_90a": compile_for_hopper,
    "sm_80": compile_for_sm_80, "simulator": simulate_hopper, "simulator_sm_80": simulate_sm_80,
}  # fmt: skip


def prepare(function: Function, target: str) -> Executable:
    """Raises UnsupportedError for a target that is not there or cannot run this kernel."""
    if target not in TARGETS:
        known = ", ".join(sorted(TARGETS))
        raise UnsupportedError(
            function.span, function.name, f"there is no target {target}", f"use one of {known}"
        )
    if target not in ("c", "interpreter"):  # C tiles with its other passes; the interpreter needs no tiles
        function = run(function, (PANELS, tiling(GPU)))
    return TARGETS[target](function)


def emitted(function: Function, target: str) -> str:
    """What `target` would compile, as text. Raises UnsupportedError."""
    return emit_function(function) if target == "c" else prepare(function, target).source
