"""The CUDA text of each kernel compiles for sm_90a without spills or advisories; no GPU is needed."""

import re

import pytest

from mortice import tile
from mortice.ops.kernels.attention import attention
from mortice.ops.kernels.gemm import gemm_nt
from mortice.ops.kernels.gemm_fp8 import gemm_fp8
from mortice.ops.kernels.norm import rms_norm
from mortice.tile.cuda.compile import compile_function
from mortice.tile.cuda.nvrtc import available, compile_text

needs_nvrtc = pytest.mark.skipif(not available(), reason="there is no NVRTC: pip install nvidia-cuda-nvrtc")
HEADS = tile.Spec((2, 256, 4, 128), tile.bf16)
SQUARE = tile.Spec((256, 256), tile.bf16)
NARROW = tile.Spec((256, 256), tile.e4m3)
KERNELS = {
    "gemm": lambda: gemm_nt.on("sm_90a").lowered(SQUARE, SQUARE),
    "gemm_fp8": lambda: gemm_fp8.on("sm_90a").lowered(NARROW, NARROW, None, None, 1.0),
    "attention": lambda: attention.on("sm_90a").lowered(HEADS, HEADS, HEADS, 0.1, causal=True),
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
