"""The compiled kernels against what they stand for, in float64 or as torch's own operators compute it."""

import pytest
import torch
from torch.nn import functional as F

from mortice.ops import compiled
from mortice.ops.attention import attend, plan
from mortice.ops.compiled import build
from mortice.ops.compiled.kernels import Kernels
from mortice.ops.quantized import GROUP, GroupedWeight
from mortice.ops.rope import RopeTable, default_frequencies, rotate

COUNTS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 70)
SHAPES = ((1, 32), (16, 64), (33, 96), (200, 576), (1000, 160))


@pytest.fixture(scope="module", params=["matrix unit", "dot products"])
def kernels(request, tmp_path_factory):
    """As this processor is, and as one without AMX would be."""
    reason = compiled.reason_without()
    if reason:
        pytest.skip(reason)
    if request.param == "matrix unit":
        return compiled.load()
    path = tmp_path_factory.mktemp("kernels") / "without_amx.so"
    build.compile_to(path, "gcc", (*build.FLAGS, "-mno-amx-tile", "-mno-amx-bf16", "-mno-amx-int8"))
    return Kernels(str(path))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def relative_error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_product_of_groups(kernels, rows, columns, bits):
    """Up to 16 rows of x are rounded to 8 bits in groups: 0.5 / 127 of a group's largest entry at most."""
    codes = torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8)
    scale = torch.rand(rows, columns // GROUP).add(0.1).half()
    low = torch.randn(rows, columns // GROUP).half()
    held = GroupedWeight(codes, scale, low, bits, kernels)
    grouped = codes.double().view(rows, -1, GROUP) - (128 if bits == 8 else 0)
    wide = grouped * scale.double()[..., None] + (low.double()[..., None] if bits == 4 else 0)
    wide = wide.view(rows, columns)
    ids = torch.randint(0, rows, (9,))
    assert torch.equal(held.rows(ids), wide[ids].bfloat16())
    bias = torch.randn(rows).bfloat16()
    for count in COUNTS:
        x = torch.randn(count, columns).bfloat16()
        x[:, : columns // 2] *= 30  # groups of different size
        found = held.product(x, bias).double() - bias.double()
        exact = x.double() @ wide.T
        # Whatever the rounding: |error| <= sum over k of |w| * (half a step of x's group), and bfloat16's own.
        step = x.double().view(count, -1, GROUP).abs().amax(-1).div(127).repeat_interleave(GROUP, 1)
        bound = 0.51 * step @ wide.abs().T + 6e-3 * (exact.abs() + x.double().abs() @ wide.abs().T / 2 + 4)
        assert ((found - exact).abs() <= bound).all()
        assert relative_error(found, exact) < 3e-2


@pytest.mark.parametrize("bits", [4, 8])
def test_quantising_stays_within_half_a_step(kernels, bits):
    weight = torch.randn(40, 96).bfloat16()
    weight[3] = 0
    weight[4, :32] = 5.0
    held = GroupedWeight.quantize(weight, bits, kernels)
    grouped = weight.float().view(40, -1, GROUP)
    width = grouped.amax(-1) - grouped.amin(-1) if bits == 4 else grouped.abs().amax(-1) * 2
    step = width / (15 if bits == 4 else 254)
    error = (held.rows(torch.arange(40)).float() - weight.float()).view(40, -1, GROUP).abs().amax(-1)
    # Half a step, then float16's rounding of scale and low over 15 steps, and bfloat16's.
    assert (error <= 0.5 * step + 0.01 * grouped.abs().amax(-1) + 1e-6).all()
    assert error[3].max() < 1e-5


@pytest.mark.parametrize("width", [16, 64, 100, 576])
@pytest.mark.parametrize("rows", [1, 5, 80])
def test_norm(kernels, rows, width):
    x, added = torch.randn(rows, width).bfloat16(), torch.randn(rows, width).bfloat16()
    weight = torch.randn(width).bfloat16()
    expected = F.rms_norm(x.double(), (width,), weight.double(), 1e-5)
    assert relative_error(kernels.add_rms_norm(x.clone(), None, weight, 1e-5), expected) < 3e-3
    total = x + added
    expected = F.rms_norm(total.double(), (width,), weight.double(), 1e-5)
    assert relative_error(kernels.add_rms_norm(x, added, weight, 1e-5), expected) < 3e-3
    assert torch.equal(x, total)


def test_norm_of_rows_that_lie_apart(kernels):
    wide, weight = torch.randn(6, 96).bfloat16(), torch.randn(40).bfloat16()
    expected = F.rms_norm(wide[:, 32:72].double(), (40,), weight.double(), 1e-6)
    assert relative_error(kernels.add_rms_norm(wide[:, 32:72], None, weight, 1e-6), expected) < 3e-3


@pytest.mark.parametrize("width", [16, 100, 1536])
def test_gate(kernels, width):
    x = (torch.randn(7, 2 * width) * 4).bfloat16()
    x[0, :4] = torch.tensor([-300.0, -90.0, 90.0, 300.0])
    gate, up = x.double().chunk(2, -1)
    assert relative_error(kernels.silu_mul(x), F.silu(gate) * up) < 4e-3


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 48), (8, 1, 128), (2, 2, 20)])
def test_rotation_and_write(kernels, heads, kv_heads, dim, normed):
    tokens = 11
    qkv = torch.randn(tokens, heads + 2 * kv_heads, dim).bfloat16()
    table = RopeTable(default_frequencies(dim, 10000.0), 1.0, torch.bfloat16, "cpu")
    turn = table.rows(torch.arange(3, 3 + tokens), 20)
    norms = (torch.randn(dim).bfloat16(), torch.randn(dim).bfloat16()) if normed else None
    planes = torch.zeros(50, kv_heads * dim).bfloat16(), torch.zeros(50, kv_heads * dim).bfloat16()
    rows = torch.randperm(50)[:tokens], torch.randperm(50)[:tokens]
    q, k, v = qkv.clone().split([heads, kv_heads, kv_heads], 1)
    if norms:
        q = F.rms_norm(q.float(), (dim,), norms[0].float(), 1e-6).bfloat16()
        k = F.rms_norm(k.float(), (dim,), norms[1].float(), 1e-6).bfloat16()
    wide = [part.double() for part in turn]
    q, k = rotate(q.double(), *wide), rotate(k.double(), *wide)
    kernels.rotate_and_write(qkv, turn, norms, 1e-6, planes, rows)
    assert relative_error(qkv[:, :heads], q) < 4e-3
    assert relative_error(planes[0][rows[0]].view(tokens, kv_heads, dim), k) < 4e-3
    assert torch.equal(planes[1][rows[1]].view(tokens, kv_heads, dim), v)
    untouched = torch.ones(50, dtype=torch.bool).index_fill_(0, rows[1], False)
    assert not planes[1][untouched].any()


@pytest.mark.parametrize("window", [0, 5, 40])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 32), (8, 1, 128), (24, 1, 96), (5, 1, 256), (14, 2, 64)]
)
def test_decoding_over_the_paged_cache(kernels, monkeypatch, heads, kv_heads, dim, window):
    """Contexts of one key, of part of a block, and longer than a unit of work, against torch over gathered keys."""
    monkeypatch.setattr("mortice.ops.attention.load", lambda: kernels)
    block_size, contexts = 16, [1, 15, 16, 17, 130, 513, 1100]
    per_sequence = [-(-c // block_size) for c in contexts]
    shuffled = torch.randperm(sum(per_sequence)) + 1
    tables = torch.zeros(len(contexts), max(per_sequence), dtype=torch.int64)
    for s, part in enumerate(shuffled.split(per_sequence)):
        tables[s, : len(part)] = part
    planes = torch.randn(2, len(shuffled) + 1, 2, block_size, kv_heads, dim).bfloat16()[:, :, 1]
    q = torch.randn(len(contexts), heads + 3, dim).bfloat16()[:, :heads]
    starts = list(range(len(contexts) + 1))
    fresh = q.new_zeros(len(contexts), kv_heads, dim)
    found, expected = (
        attend(
            q.to(dtype),
            fresh.to(dtype),
            fresh.to(dtype),
            *planes.to(dtype),
            plan(starts, contexts, tables, block_size, window, dtype, in_place=in_place),
            dim**-0.5,
        )
        for dtype, in_place in ((torch.bfloat16, True), (torch.float32, False))
    )
    assert relative_error(found, expected.double()) < 6e-3


def test_rows_of_a_mixed_step_go_back_to_their_places(kernels, monkeypatch):
    """Two decode rows around a prompt chunk."""
    monkeypatch.setattr("mortice.ops.attention.load", lambda: kernels)
    tables = torch.tensor([[1, 2], [3, 4], [5, 6]])
    planes = torch.randn(2, 7, 16, 2, 32).bfloat16()
    q, fresh = torch.randn(8, 4, 32).bfloat16(), torch.randn(8, 2, 32).bfloat16()
    found, expected = (
        attend(
            q.to(dtype),
            fresh.to(dtype),
            fresh.to(dtype),
            *planes.to(dtype),
            plan([0, 1, 7, 8], [20, 30, 7], tables, 16, 0, dtype, in_place=in_place),
            0.2,
        )
        for dtype, in_place in ((torch.bfloat16, True), (torch.float32, False))
    )
    assert relative_error(found, expected.double()) < 6e-3


def test_a_folder_that_others_can_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(build.Unavailable, match="chmod 700"):
        build.private_folder(tmp_path)


def test_a_failing_compiler_is_a_reason_not_a_crash(tmp_path):
    with pytest.raises(build.Unavailable, match="failed"):
        build.compile_to(tmp_path / "made.so", "gcc", (*build.FLAGS, "-march=nothing"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"environ": {build.SWITCH: "torch"}}, "switched off"),
        ({"flags": frozenset({"avx2"})}, "lacks avx512f"),
        ({"compiler": None}, "install gcc"),
    ],
)
def test_the_reason_names_the_remedy(monkeypatch, change, reason):
    if "environ" in change:
        monkeypatch.setenv(build.SWITCH, "torch")
    monkeypatch.setattr(build, "processor_flags", lambda: change.get("flags", frozenset(build.NEEDED)))
    if "compiler" in change:
        monkeypatch.setattr(build.shutil, "which", lambda _: None)
    with pytest.raises(build.Unavailable, match=reason):
        build.library.__wrapped__()
