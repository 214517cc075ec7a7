"""The fake model that takes its time from a document."""

import pytest
import torch

from mortice.engine.config import WorkerConfig
from mortice.engine.worker import model_of
from mortice.models.fake import FAKE_TIMED, TimedFakeModel, step_seconds
from mortice.models.step import StepInput
from mortice.specs.cluster import ClusterSpec
from mortice.specs.deployment import Deployment
from mortice.specs.errors import RequestError
from mortice.specs.worker_times import WorkerTimes

TIMES = WorkerTimes(
    prefill_base_s=0.5,
    prefill_token_s=0.25,
    prefill_square_s=0.125,
    decode_base_s=1.0,
    decode_sequence_s=2.0,
    decode_context_s=4.0,
    kv_tokens=100,
)


def step(query: list[int], contexts: list[int]) -> StepInput:
    none = torch.empty(0, dtype=torch.int64)
    starts = [sum(query[:i]) for i in range(len(query) + 1)]
    return StepInput(none, none, starts, contexts, none, none, none)


def test_a_step_lasts_as_the_times_say() -> None:
    assert step_seconds(step([1, 1], [10, 7]), TIMES) == TIMES.decode_s(2, 17)
    assert step_seconds(step([3], [8]), TIMES) == TIMES.prefill_s(3, prefix=5)
    mixed = step_seconds(step([1, 3], [10, 8]), TIMES)
    assert mixed == TIMES.mixed_s(3, 3 * (3 + 2 * 5), 1, 10)


def config(cluster: ClusterSpec | None) -> WorkerConfig:
    deployment = Deployment(model=FAKE_TIMED, cluster=cluster)
    fields = dict.fromkeys(WorkerConfig.__struct_fields__, "")
    return WorkerConfig(**(fields | {"deployment": deployment, "model_path": FAKE_TIMED}))  # type: ignore[arg-type]


@pytest.mark.parametrize("cluster", [None, ClusterSpec(), ClusterSpec(decode_times=TIMES)])
def test_without_times_it_says_what_is_missing(cluster: ClusterSpec | None) -> None:
    with pytest.raises(RequestError, match=r"give cluster\.prefill_times"):
        model_of(config(cluster), torch.device("cpu"))


def test_with_times_it_is_the_timed_one() -> None:
    model, *_ = model_of(config(ClusterSpec(prefill_times=TIMES, decode_times=TIMES)), torch.device("cpu"))
    assert isinstance(model, TimedFakeModel)
