"""No product of the engine waits for a compiler once `mortice tile build` has run."""

import pytest
import torch

from mortice.ops.ahead import compile_ahead
from mortice.ops.compiled import kernels_for
from mortice.ops.linear import PanelWeight
from mortice.tile.c import build


def test_what_was_compiled_ahead_is_all_that_products_need(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(3000, 576, dtype=torch.bfloat16)
    if kernels_for(weight) is None:
        assert list(compile_ahead()) == []
        pytest.skip("torch does the products of this processor")
    assert len(list(compile_ahead((576,)))) == 10

    def refuse(*_: object) -> None:
        raise AssertionError("a request would wait for the compiler")

    monkeypatch.setattr(build, "_compile", refuse)
    for rows, columns in ((1, 3000), (9, 96), (31, 3000), (50, 2049), (500, 192)):
        panel = PanelWeight(weight[:columns])
        x = torch.randn(rows, 576, dtype=torch.bfloat16)
        expected = x.float() @ weight[:columns].float().T
        torch.testing.assert_close(panel.product(x, None).float(), expected, atol=0.6, rtol=0.02)
        assert torch.equal(panel.rows(torch.tensor([5, 95])), weight[[5, 95]])
