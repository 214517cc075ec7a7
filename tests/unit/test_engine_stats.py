"""What a worker tells of itself: every metric that the table says workers count, and true."""

from types import SimpleNamespace

import pytest
import torch

from mortice.engine.idle import DeviceIdle
from mortice.engine.loop import Loop
from mortice.obs.metric_table import TABLE
from mortice.obs.metrics import worker_families
from mortice.specs.messages import Prefilled, Submit
from mortice.transport.base import TransferResult


def told_by(rig) -> dict[str, float]:
    """Samples by name of the metric; the last where a metric has several."""
    loop = Loop.__new__(Loop)  # its sockets aside
    loop.engine, loop.admin = rig.engine, SimpleNamespace(state="running")
    loop._hello = SimpleNamespace(worker_id="decode-0.1")
    families = worker_families("m", [("decode", True, loop._stats())])
    prefix = "mortice:"
    return {f.name.removeprefix(prefix): f.samples[-1].value for f in families if f.samples}


def test_every_metric_of_workers_is_told(make_rig, make_request):
    rig = make_rig()
    rig.submit(Submit(request=make_request("a", [1, 2, 3])))
    rig.run()
    names = {m.name.removesuffix("_total") for m in TABLE if m.source == "worker"}
    assert set(told_by(rig)) == names


def test_a_hand_over_counts_on_the_reader(make_rig, make_request):
    owner, reader = make_rig(name="prefill-0.1"), make_rig(name="decode-0.1")
    request = make_request("a", list(range(1, 11)))
    owner.submit(Submit(request=request, prefill_only=True))
    owner.run()
    (prefilled,) = [m for m in owner.said if isinstance(m, Prefilled)]
    tokens = [list(prefilled.first[0].token_ids)]
    reader.submit(Submit(request=request, resumed=tokens, handoff=prefilled.descriptor))
    reader.run()
    told = told_by(reader)
    assert told["external_prefix_cache_queries"] == told["external_prefix_cache_hits"] == 10
    assert told_by(owner)["external_prefix_cache_queries"] == 0
    reader.engine.handoff.count(TransferResult("x", 0, 0.0, "checksum of block 3 is wrong", num_corrupt=2))
    assert told_by(reader)["kv_transfer_checksum_failures"] == 2


def test_estimates_are_sums_of_steps(make_rig, make_request):
    rig = make_rig()
    ledger = rig.engine.ledger
    ledger.weight_bytes, ledger.flops_per_token, kv = 1000, 7, ledger.kv_token_bytes
    rig.submit(Submit(request=make_request("a", [1, 2, 3], max_tokens=3)))
    rig.run()  # one step of three tokens, two of one
    told = told_by(rig)
    assert told["steps"] == 3
    assert told["estimated_flops_per_gpu"] == 5 * 7
    assert told["estimated_read_bytes_per_gpu"] == 3 * 1000 + (3 + 4 + 5) * kv
    assert told["estimated_write_bytes_per_gpu"] == 5 * kv


def test_idle_time_is_between_forward_passes_and_not_without_work(monkeypatch):
    now = 0.0
    monkeypatch.setattr("mortice.engine.idle.time.perf_counter", lambda: now)
    idle = DeviceIdle(torch.device("cpu"))
    for begin, end in ((1.0, 2.0), (2.5, 3.0)):
        now = begin
        with idle:
            now = end
    assert idle.total_s() == pytest.approx(0.5)
    idle.forget()
    now = 100.0
    with idle:
        now = 101.0
    assert idle.total_s() == pytest.approx(0.5)


def test_an_engine_that_comes_to_rest_counts_no_more_idle_time(make_rig, make_request):
    rig = make_rig()
    rig.submit(Submit(request=make_request("a", [1, 2, 3])))
    rig.run()
    assert rig.engine.idle.total_s() > 0
    assert rig.engine.idle._free_since_s is None
