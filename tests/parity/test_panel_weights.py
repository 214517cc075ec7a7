"""Products with weights in panels, by kernels of the tile language, against float64."""

import pytest
import torch

from mortice.ops.kernels import panels
from mortice.ops.linear import PanelWeight
from mortice.ops.tiled import tiled_on_cpu
from mortice.tile.c import build

COUNTS = (1, 2, 8, 9, 70)
SHAPES = ((1, 32), (33, 96), (1000, 160))
WITHOUT_AMX = ("-mno-amx-tile", "-mno-amx-bf16", "-mno-amx-int8")


@pytest.fixture(scope="module", params=["as it is", "without AMX"])
def processor(request):
    """As this processor is, and as one without the matrix unit would be."""
    if not tiled_on_cpu(torch.zeros(1).bfloat16()):
        pytest.skip("no C compiler")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "without AMX":
            patch.setattr(build, "FLAGS", (*build.FLAGS, *WITHOUT_AMX))
        build._surroundings.cache_clear()
        patch.setattr(panels, "linear_panels", panels.linear_panels.on("c"))
        yield request.param
    build._surroundings.cache_clear()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def relative_error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_product(processor, rows, columns):
    weight, bias = torch.randn(rows, columns).bfloat16(), torch.randn(rows).bfloat16()
    held = PanelWeight(weight)
    x = torch.randn(max(COUNTS), columns).bfloat16()
    whole = held.product(x, bias)
    for count in COUNTS:
        found = held.product(x[:count], bias)
        expected = x[:count].double() @ weight.double().T + bias.double()
        assert relative_error(found, expected) < 3e-3
        assert torch.equal(found, whole[:count]), "a row's product depends on how many rows there are"


def test_without_bias_of_rows_that_lie_apart(processor):
    weight = torch.randn(48, 576).bfloat16()
    x = torch.randn(5, 640).bfloat16()[:, 64:]
    assert relative_error(PanelWeight(weight).product(x, None), x.double() @ weight.double().T) < 3e-3


def test_several_blocks_of_columns_and_more_rows_than_a_block():
    weight, x = torch.randn(64, 1200).bfloat16()[:, :1184], torch.randn(300, 1184).bfloat16()
    assert relative_error(PanelWeight(weight).product(x, None), x.double() @ weight.double().T) < 3e-3


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_rows_come_back(rows, columns):
    weight = torch.randn(rows, columns).bfloat16()
    ids = torch.randint(0, rows, (70,))
    assert torch.equal(PanelWeight(weight).rows(ids), weight[ids])


def test_ids_outside_give_zeros():
    weight = torch.randn(40, 64).bfloat16()
    found = PanelWeight(weight).rows(torch.tensor([3, -1, 1 << 40, 39]))
    assert torch.equal(found[[0, 3]], weight[[3, 39]])
    assert not found[[1, 2]].any()
