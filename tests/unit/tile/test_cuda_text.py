"""The CUDA text of each kernel compiles for sm_90a without spills or advisories; no GPU is needed."""

import re

import pytest

from mortice import tile
from mortice.ops.kernels.attention import attention
from mortice.ops.kernels.attention_decode import paged_decode
from mortice.ops.kernels.gemm import gemm_nt
from mortice.ops.kernels.gemm_fp8 import gemm_fp8
from mortice.ops.kernels.gemm_grouped import grouped_gemm_fp8
from mortice.ops.kernels.gemm_thin import gemm_thin, gemm_thin_split
from mortice.ops.kernels.gemv import gemv
from mortice.ops.kernels.norm import rms_norm
from mortice.tile.cuda.compile import compile_function
from mortice.tile.cuda.nvrtc import available, compile_text

needs_nvrtc = pytest.mark.skipif(not available(), reason="there is no NVRTC: pip install nvidia-cuda-nvrtc")
HEADS = tile.Spec((2, 256, 4, 128), tile.bf16)
SQUARE = tile.Spec((256, 256), tile.bf16)
NARROW = tile.Spec((256, 256), tile.e4m3)
ROWS = tile.Spec((16, 256), tile.bf16)
SCALES = tile.Spec((256, 2), tile.f32)
PAGES = tile.Spec((9, 16, 8, 128), tile.bf16)
KERNELS = {
    "gemm": lambda: gemm_nt.on("sm_90a").lowered(SQUARE, SQUARE),
    "gemm_fp8": lambda: gemm_fp8.on("sm_90a").lowered(NARROW, NARROW, None, None, 1.0),
    "attention": lambda: attention.on("sm_90a").lowered(HEADS, HEADS, HEADS, 0.1, causal=True),
    "gemm_thin": lambda: gemm_thin.on("sm_90a").lowered(ROWS, SQUARE),
    "gemm_thin_split": lambda: gemm_thin_split.on("sm_90a").lowered(ROWS, SQUARE),
    "gemv": lambda: gemv.on("sm_90a").lowered(ROWS, SQUARE),
    "grouped": lambda: grouped_gemm_fp8.on("sm_90a").lowered(
        NARROW,
        SCALES,
        tile.Spec((4, 256, 256), tile.e4m3),
        tile.Spec((4, 2, 2), tile.f32),
        tile.Spec((5,), tile.i32),
    ),
    "decode": lambda: paged_decode.on("sm_90a").lowered(
        tile.Spec((4, 32, 128), tile.bf16),
        PAGES,
        PAGES,
        tile.Spec((4, 9), tile.i32),
        tile.Spec((4,), tile.i32),
        0.1,
    ),
    "norm": lambda: rms_norm.on("sm_90a").lowered(
        tile.Spec((64, 1024), tile.bf16), tile.Spec((1024,), tile.bf16), 1e-5
    ),
}


@needs_nvrtc
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_without_spills(name):
    code, log = compile_text(compile_function(KERNELS[name]()).source, "sm_90a")
    assert code[:4] == b"\x7fELF"
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in log
    assert not re.search(r"\(C75\d\d\)", log), log


@needs_nvrtc
@pytest.mark.parametrize("name", ["gemv", "gemm_thin_split", "grouped", "decode", "norm"])
def test_no_tensor_is_read_before_the_kernel_before_has_ended(name):
    ptx, _ = compile_text(compile_function(KERNELS[name]()).source, "compute_90a")
    for kernel in ptx.decode().split(".entry")[1:]:
        before, waits, after = kernel.partition("griddepcontrol.wait")
        assert waits
        assert "ld.global" not in before
        assert "ld.global" in after or "cp.async.bulk.tensor" in after


def test_gemm_is_planned_as_a_hand_would():
    source = compile_function(KERNELS["gemm"]()).source
    body = source[source.index("gemm_nt_0(") :]
    assert body.count("wgmma_256_bf16_bf16_00(") == 4
    assert body.count("tma_load_2d(") == 2
    assert body.count("tma_store_2d(") == 1
    assert "wgmma_wait<1>();" in body
    assert "grow_registers<232>" in body


def test_attention_overlaps_and_takes_turns():
    body = compile_function(KERNELS["attention"]()).source
    body = body[body.index("attention_0(") :]
    loop = body[re.search(r"\bsync\(\(+warpIndex / 4\) \+ 5\), 256\)", body).start() :]
    first, second = loop.index("wgmma_128_"), loop.index("wgmma_registers_128_")
    assert first < second < loop.index("wgmma_wait<1>();") < loop.index("wgmma_wait<0>();")
