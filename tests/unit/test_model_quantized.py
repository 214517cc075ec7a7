"""Products of 8- and 4-bit weights against the weights they stand for, over the shapes where kernels change
paths."""

import pytest
import torch

from mortice.ops.quantized import GROUP, Int4Weight, Int8Weight

ROWS = (1, 2, 3, 4, 5, 8, 16, 19, 20, 33)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(1, 16), (17, 48), (150, 136), (96, 100), (272, 576)])
def test_int8(rows, columns, dtype):
    """136 and 100 columns do not fill the vectors of torch's kernel, which then reads past the end of the
    weight."""
    torch.manual_seed(0)
    held = Int8Weight.quantize(torch.randn(rows, columns).to(dtype))
    wide = held.codes.double() * held.scale.double()[:, None]
    for count in ROWS:
        x = torch.randn(count, columns).to(dtype)
        expected = x.double() @ wide.T
        error = (held.product(x, None).double() - expected).abs().max() / expected.abs().max()
        assert error < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (48, 96), (272, 576), (960, 64)])
def test_int4(rows, columns, dtype):
    torch.manual_seed(0)
    codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
    scale, zero = (
        torch.rand(rows, columns // GROUP).to(dtype).float(),
        torch.randn(rows, columns // GROUP).to(dtype).float(),
    )
    held = Int4Weight(codes, scale, zero, dtype)
    grouped = codes.double().view(rows, -1, GROUP) - 8
    wide = (grouped * scale.double()[..., None] + zero.double()[..., None]).view(rows, columns)
    for count in ROWS:
        x = torch.randn(count, columns).to(dtype)
        bias = torch.randn(rows).to(dtype)
        expected = x.double() @ wide.T + bias.double()
        error = (held.product(x, bias).double() - expected).abs().max() / expected.abs().max()
        assert error < (1e-5 if dtype == torch.float32 else 2e-2)


def test_shapes_that_groups_do_not_fit_are_known():
    assert Int4Weight.fits(32, 64)
    assert not Int4Weight.fits(30, 64)
    assert not Int4Weight.fits(32, 40)
