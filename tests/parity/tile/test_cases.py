"""Every kernel of `ops/kernels`, interpreted, compiled and as the lowered Hopper program in the simulator, against PyTorch
on ragged shapes. `mortice tile check` draws more."""

import os

import pytest

from mortice.ops.kernels.cases import CASES, Draw

SEED = int(os.environ.get("MORTICE_SEED", "0"))


QUICK = (
    "gemm_thin_split",
    "gemm_fp8",
    "grouped_gemm_fp8",
    "gemv",
    "topk_gate",
    "quantize",
    "sample",
    "permute",
)
RUNS = [(name, target) for target in ("interpreter", "c") for name in CASES] + [
    pytest.param(name, "simulator", marks=() if name in QUICK else pytest.mark.slow) for name in CASES
]


@pytest.mark.parametrize(("name", "target"), RUNS)
def test_a_trial(name, target):
    print(f"seed {SEED}")
    case = CASES[name]
    trial = case.trial(Draw(f"{name} {SEED} 0"))
    error = trial.error(case.kernel.on(target)(*trial.arguments, **trial.constants))
    assert error <= trial.tolerance
