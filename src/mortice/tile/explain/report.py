"""Notes, resources and bound of a kernel for one target and one set of sizes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mortice.tile.c.build import packs_bf16
from mortice.tile.cuda.compile import Compiled
from mortice.tile.explain import cpu, gpu
from mortice.tile.explain.note import Note
from mortice.tile.host import bind
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import walk
from mortice.tile.kernel import Kernel
from mortice.tile.tune.machine import H200, Machine, this_cpu
from mortice.tile.tune.model import Prediction, predict


@dataclass(frozen=True, slots=True)
class Resources:
    """Of a GPU block. roles: name, warps, registers a thread. stages: slots of each ring by its name."""

    threads: int
    shared_bytes: int
    roles: tuple[tuple[str, int, int], ...]
    stages: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """resources: one a launch; none on a CPU, whose tiles' bytes stand in the prediction."""

    target: str
    machine: Machine
    notes: tuple[Note, ...]
    resources: tuple[Resources, ...]
    prediction: Prediction
    function: s.Function
    dims: dict[str, Any]

    def summary(self) -> list[str]:
        """What is needed and what bounds it, in lines."""
        p, lines = self.prediction, []
        for r in self.resources:
            roles = "; ".join(
                f"{name}: {warps} warps, {regs or 'as launched'} registers a thread"
                for name, warps, regs in r.roles
            )
            rings = ", ".join(f"{name} {count} stages" for name, count in r.stages.items())
            lines.append(
                f"a block: {r.threads} threads, {r.shared_bytes} bytes of shared memory"
                + (f"; {roles}" if roles else "")
                + (f"; {rings}" if rings else "")
            )
        if not self.resources:
            lines.append(f"a block: tiles of {p.tile_bytes} bytes (a core's cache has {self.machine.cache})")
        lines += [
            f"bound on {self.machine.name}: {p.bound * 1e3:.4g} ms by {p.bound_by} "
            f"({p.flops:.3g} FLOP of products, {p.bytes:.3g} bytes of tensors)",
            f"this schedule, as the model sees it: {p.seconds * 1e3:.4g} ms in {p.blocks} blocks",
        ]
        if p.data_dependent:
            lines.append("some loop ends in a tensor: its length was guessed")
        return lines


def report(
    kernel: Kernel, arguments: Sequence[Any], target: str = "c", constants: dict[str, Any] | None = None
) -> Report:
    """target: "c" or "sm_90a". arguments: tensors or specs. Raises TileError as the compiler does."""
    there, given = kernel.on(target), constants or {}
    function = there.lowered(*arguments, **given)
    views, scalars = there.views(*arguments)
    dims = dict(bind(function, views, scalars).dims)
    if target == "c":
        notes = tuple(cpu.explain(function, packs_bf16()))
        machine = this_cpu()
        return Report(target, machine, notes, (), predict(function, dims, machine), function, dims)
    made = there.compiled(*arguments, **given)
    assert isinstance(made, Compiled)
    variant = made.variant(frozenset(p.buffer.name for p in function.tensors if p.result))
    notes = tuple(gpu.explain(function, variant.lowered, variant.notes))
    resources = tuple(_resources(x) for x in variant.lowered.body if isinstance(x, s.Launch))
    return Report(target, H200, notes, resources, predict(function, dims, H200), function, dims)


def _resources(launch: s.Launch) -> Resources:
    shared, stages = 0, {}
    for node in walk(launch.body):
        if isinstance(node, s.Alloc) and node.at is not None:
            size = 8 if node.buffer.scope == "barrier" else node.buffer.dtype.bytes
            for extent in node.buffer.extents:
                size *= extent
            shared = max(shared, node.at + size)
            if node.buffer.scope == "barrier" and node.buffer.name.startswith("full_"):
                stages[node.buffer.name.removeprefix("full_")] = node.buffer.extents[0]
    roles = [
        (r.name, r.warps, r.registers) for x in walk(launch.body) if isinstance(x, s.Roles) for r in x.roles
    ]
    return Resources(launch.threads or 0, shared, tuple(roles), stages)
