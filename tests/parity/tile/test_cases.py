"""Every kernel of `ops/kernels`, interpreted and compiled, against PyTorch on ragged shapes. `mortice tile check` draws
more."""

import os

import pytest

from mortice.ops.kernels.cases import CASES, Draw

SEED = int(os.environ.get("MORTICE_SEED", "0"))


@pytest.mark.parametrize("target", ["interpreter", "c"])
@pytest.mark.parametrize("name", list(CASES))
def test_a_trial(name, target):
    print(f"seed {SEED}")
    case = CASES[name]
    trial = case.trial(Draw(f"{name} {SEED} 0"))
    error = trial.error(case.kernel.on(target)(*trial.arguments, **trial.constants))
    assert error <= trial.tolerance
