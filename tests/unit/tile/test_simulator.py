"""The simulator must object where a card would hang, race or read too early: programs with one instruction removed."""

import re
from dataclasses import replace

import numpy as np
import pytest

from mortice import tile
from mortice.ops.kernels.attention import attention
from mortice.ops.kernels.gemm import gemm_nt
from mortice.ops.kernels.mla import mla_decode
from mortice.tile import arguments
from mortice.tile.host import bind
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import transform_block, walk
from mortice.tile.passes.gpu.lower import Choices, lower
from mortice.tile.simulator import simulate

SEEDS = range(2)


def gemm_program(m=100, n=72, k=328):
    shapes = {"A": (m, k), "B": (n, k)}
    rng = np.random.default_rng(0)
    data = {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}
    function = gemm_nt.on("sm_90a").lowered(
        *(tile.Spec(shape, tile.f16) for shape in shapes.values()), BM=64, BN=64, BK=64, stages=2
    )
    data["C"] = np.full((m, n), np.nan, np.float16)
    bound = bind(function, {name: arguments.view(x) for name, x in data.items()}, {})
    lowered, _ = lower(function, Choices(persistent=True, aligned=frozenset({"C"})))
    return lowered, bound, data


def attention_program(s=129, t=193):
    rng = np.random.default_rng(0)
    lengths = {"Q": s, "K": t, "V": t}
    data = {name: rng.standard_normal((1, n, 1, 64)).astype(np.float16) for name, n in lengths.items()}
    specs = (tile.Spec((1, n, 1, 64), tile.f16) for n in lengths.values())
    function = attention.on("sm_90a").lowered(*specs, 0.1, BN=64)
    results = [p.buffer.name for p in function.tensors if p.result]
    data[results[0]] = np.full((1, s, 1, 64), np.nan, np.float16)
    data[results[1]] = np.full((1, 1, s), np.nan, np.float32)
    bound = bind(function, {name: arguments.view(x) for name, x in data.items()}, {"scale": 0.1})
    lowered, _ = lower(function, Choices(persistent=True, aligned=frozenset(results)))
    return lowered, bound, data


def mla_program():
    """One block of 64 heads whose single slot of keys goes panel by panel, three times."""
    rng = np.random.default_rng(0)
    data = {
        "Q": rng.standard_normal((1, 64, 448)).astype(np.float16),
        "KV": rng.standard_normal((3, 64, 448)).astype(np.float16),
        "table": np.array([[2, 0, 1]], np.int32),
        "lengths": np.array([150], np.int32),
    }
    specs = [
        tile.Spec(x.shape, getattr(tile, {"f2": "f16", "i4": "i32"}[x.dtype.str[1:]])) for x in data.values()
    ]
    function = mla_decode.on("sm_90a").lowered(*specs, 0.1, DV=384, BN=64, splits=1, stages=1)
    data["Y"], data["L"] = (
        np.full((1, 1, 64, 384), np.nan, np.float32),
        np.full((1, 1, 64), np.nan, np.float32),
    )
    bound = bind(function, {name: arguments.view(x) for name, x in data.items()}, {"scale": 0.1})
    lowered, _ = lower(function)
    return lowered, bound, data


ORDERING = (
    "barrier_wait", "barrier_arrive", "barrier_expect", "wgmma_fence", "wgmma_wait", "fence_async", "sync", "tma_load",
)  # fmt: skip
PROGRAMS = {"gemm": gemm_program, "attention": attention_program}


def mutated(function, name, number, change):
    """The function with its number-th instruction `name` changed (to nothing: removed)."""
    seen = -1

    def visit(node):
        nonlocal seen
        if isinstance(node, s.Op) and node.name == name:
            seen += 1
            if seen == number:
                return change(node)
        return node

    body = transform_block(function.body, visit)
    assert seen >= number, f"there is no {name} {number}"
    return replace(function, body=body)


def objects(function, bound, first=False):
    """What is said of those schedules that are refused, or of the first one."""
    said = []
    for seed in SEEDS:
        try:
            simulate(function, bound, seed, multiprocessors=1)
        except tile.CheckError as problem:
            said.append(str(problem))
            if first:
                break
    return said


def count(function, name):
    return sum(isinstance(x, s.Op) and x.name == name for x in walk(function.body))


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_whole_program_is_right_in_any_order(program):
    function, bound, data = PROGRAMS[program]()
    for seed in SEEDS:
        report = simulate(function, bound, seed)
    assert report.blocks > 0
    assert all(np.isfinite(x).all() for x in data.values())
    if program == "gemm":
        expected = data["A"].astype(np.float64) @ data["B"].astype(np.float64).T
        assert np.linalg.norm(data["C"] - expected) <= 2e-3 * np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("program", [lambda: gemm_program(64, 60, 264), lambda: attention_program(33, 130)])
def test_a_hundred_orders_of_completion_give_the_same_bits(program):
    function, bound, data = program()
    seen = set()
    for seed in range(100):
        simulate(function, bound, seed, multiprocessors=1)
        seen.add(tuple(x.tobytes() for x in data.values()))
    assert len(seen) == 1


@pytest.mark.parametrize("program", ["gemm", pytest.param("attention", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ORDERING)
def test_each_removed_instruction_is_noticed(program, name):
    function, bound, _ = PROGRAMS[program]()
    unseen = []
    for number in range(count(function, name)):
        if not objects(mutated(function, name, number, lambda node: ()), bound, first=True):
            unseen.append(number)
    assert unseen == HARMLESS.get((program, name), []), f"{name}: removing {unseen} goes unnoticed"


# What may go: the fence before any register was written, the second of two with no register written between them;
# whose turn it is at the matrix unit.
HARMLESS: dict[tuple[str, str], list[int]] = {
    ("attention", "wgmma_fence"): [0, 2],
    ("attention", "sync"): [1],
}


@pytest.mark.parametrize("name", ["barrier_wait", "barrier_arrive", "barrier_expect", "tma_load"])
def test_a_panel_that_is_not_waited_for_or_given_back_is_noticed(name):
    function, bound, _ = mla_program()
    # The last arrival gives back the queries, which nobody fills again.
    number = 0 if name == "barrier_arrive" else count(function, name) - 1
    assert objects(mutated(function, name, number, lambda node: ()), bound, first=True)


@pytest.mark.parametrize(
    ("name", "word"), [("barrier_expect", "deadlock|arrivals"), ("barrier_init", "barrier")]
)
def test_wrong_counts_are_named(name, word):
    function, bound, _ = gemm_program()
    if name == "barrier_expect":
        wrong = mutated(function, name, 0, lambda x: replace(x, operands=(x.operands[0], tile_const(1024))))
    else:
        wrong = mutated(function, name, 0, lambda x: ())
    said = objects(wrong, bound)
    assert said
    assert all(re.search(word, text) for text in said)


def tile_const(value):
    from mortice.tile.ir.expr import const

    return const(value)


def test_the_message_has_the_authors_line():
    function, bound, _ = gemm_program()
    said = objects(mutated(function, "barrier_wait", 1, lambda node: ()), bound)
    assert any("gemm.py:" in text for text in said)


def test_staging_rows_meet_no_bank_twice():
    function, bound, _ = gemm_program()
    report = simulate(function, bound)
    assert not [key for key in report.conflicts if key[0] == "stmatrix"]
