"""`explain` for both machines: lines, resources, bounds; and its picture."""

from pathlib import Path

import pytest

from mortice.ops.kernels.attention import attention
from mortice.ops.kernels.gemm import gemm_nt
from mortice.ops.kernels.norm import rms_norm
from mortice.tile import Spec, bf16, f32
from mortice.tile.explain import report
from mortice.tile.explain.timeline import timeline

PNG = b"\x89PNG\r\n\x1a\n"


def product(m: int, n: int, k: int) -> tuple[Spec, Spec]:
    return Spec((m, k), bf16), Spec((n, k), bf16)


def test_a_gpu_report_names_engine_products_registers_and_stages():
    found = report(gemm_nt, product(4096, 4096, 4096), "sm_90a")
    said = {note.source: note for note in found.notes}
    load = next(note for source, note in said.items() if source.startswith("tile.copy(A"))
    assert "TMA" in load.decision
    assert not load.slow
    assert load.span.file.endswith("gemm.py")
    gemm = next(note for note in found.notes if note.operator == "gemm")
    assert "m64n256" in gemm.decision
    (block,) = found.resources
    assert block.roles == (("load", 4, 40), ("compute", 8, 232))
    assert block.stages == {"a": 4}
    assert 4 * 3 * 16384 <= block.shared_bytes <= 232448
    assert found.prediction.bound_by == "compute"
    assert found.prediction.bound <= found.prediction.seconds


def test_a_slow_path_is_named_with_its_rule():
    notes = report(gemm_nt, product(100, 100, 1001), "sm_90a").notes
    slow = [note for note in notes if note.slow]
    assert len(slow) == 2
    assert all("no multiple of 16 bytes" in note.reason for note in slow)
    widened = report(gemm_nt, (Spec((64, 64), f32), Spec((64, 64), f32)), "c").notes
    assert not [note for note in widened if note.slow]


def test_bounds_are_rooflines():
    moved = report(rms_norm, (Spec((4096, 4096), bf16), Spec((4096,), bf16), 1e-5), "sm_90a").prediction
    assert moved.bound_by == "memory"
    assert moved.bytes == 2 * (2 * 4096 * 4096 + 4096)
    assert moved.bound == pytest.approx(moved.bytes / 4.29e12)
    one = Spec((2, 2048, 4, 64), bf16)
    full, causal = (
        report(attention, (one, one, one, 0.125), "c", {"causal": causal}).prediction
        for causal in (False, True)
    )
    assert full.flops == 4 * 2 * 4 * 2048 * 2048 * 64
    assert causal.seconds <= full.seconds


@pytest.mark.parametrize("target", ["c", "sm_90a"])
def test_a_picture(target, tmp_path: Path):
    pytest.importorskip("matplotlib")
    from mortice.tile.explain.plot import draw

    found = report(gemm_nt, product(512, 512, 512), target)
    draw(found, "gemm", tmp_path / "gemm.png")
    assert (tmp_path / "gemm.png").read_bytes().startswith(PNG)
    bars = timeline(found.function, found.dims, found.machine, target != "c").bars
    computing = [bar for bar in bars if bar.who == "compute"]
    copying = [bar for bar in bars if bar.who == "copy"]
    assert all(copy.end <= compute.start for copy, compute in zip(copying, computing, strict=True))
    overlap = any(copying[i + 1].start < computing[i].end for i in range(len(computing) - 1))
    assert overlap == (target != "c")
