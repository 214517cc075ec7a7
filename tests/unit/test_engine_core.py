"""The engine against the reference of the fake model: whatever path a request takes, its text is the same."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from mortice.engine.admin import Admin
from mortice.models.fake import reference_tokens
from mortice.sched.sequence import Sequence
from mortice.specs.deployment import Speculation
from mortice.specs.errors import RequestError, WrongState
from mortice.specs.messages import Abort, EndSequence, Submit


def prompt_of(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, 257) for _ in range(length)]


@pytest.mark.parametrize("token_budget", [16, 17, 64])
@pytest.mark.parametrize("prompt_len", [1, 3, 4, 5, 40])
def test_greedy_text_does_not_depend_on_chunks(
    make_rig: Any, make_request: Any, token_budget: int, prompt_len: int
) -> None:
    rig = make_rig(token_budget=token_budget)
    prompt = prompt_of(prompt_len)
    rig.submit(Submit(request=make_request("r", prompt, max_tokens=12)))
    rig.run()
    assert rig.tokens("r") == reference_tokens(prompt, 12)
    assert rig.finish("r") == "length"
    rig.engine.check_integrity()
    assert rig.engine.pool.num_free == 64


def test_a_crowd_under_preemption_gets_the_right_texts(make_rig: Any, make_request: Any) -> None:
    rig = make_rig(num_blocks=12, token_budget=20, max_num_seqs=16)
    prompts = {f"r{i}": prompt_of(5 + i, seed=i) for i in range(12)}
    for name, prompt in prompts.items():
        rig.submit(Submit(request=make_request(name, prompt, max_tokens=20)))
    rig.run()
    for name, prompt in prompts.items():
        assert rig.tokens(name) == reference_tokens(prompt, 20), name
    assert rig.engine.scheduler.num_preemptions > 0
    rig.engine.check_integrity()


def test_a_cached_prefix_is_used_and_changes_nothing(make_rig: Any, make_request: Any) -> None:
    rig = make_rig()
    prompt = prompt_of(18)
    for name in ("first", "second"):
        rig.submit(Submit(request=make_request(name, prompt)))
        rig.run()
    assert rig.tokens("second") == rig.tokens("first") == reference_tokens(prompt, 8)
    assert rig.deltas("first")[0].num_cached_tokens == 0
    assert rig.deltas("second")[0].num_cached_tokens == 16


def test_another_salt_or_adapter_shares_nothing(make_rig: Any, make_request: Any) -> None:
    rig = make_rig()
    prompt = prompt_of(18)
    plain = make_request("plain", prompt)
    rig.submit(Submit(request=plain))
    rig.run()
    import msgspec

    salted = msgspec.structs.replace(plain, id="salted", cache_salt="tenant")
    rig.submit(Submit(request=salted))
    rig.run()
    assert rig.deltas("salted")[0].num_cached_tokens == 0


def test_n_sequences_share_the_prompt_and_part_when_they_write(make_rig: Any, make_request: Any) -> None:
    rig = make_rig()
    prompt = prompt_of(10)
    rig.submit(Submit(request=make_request("many", prompt, n=4, temperature=1.0, seed=7, max_tokens=10)))
    rig.submit(Submit(request=make_request("one", prompt, temperature=1.0, seed=7, max_tokens=10)))
    rig.run()
    texts = [tuple(rig.tokens("many", i)) for i in range(4)]
    assert len(set(texts)) > 1, "the sequences draw different numbers"
    assert list(texts[0]) == rig.tokens("one")
    rig.engine.check_integrity()
    rig2 = make_rig()
    rig2.submit(Submit(request=make_request("greedy", prompt, n=3)))
    rig2.run()
    for i in range(3):
        assert rig2.tokens("greedy", i) == reference_tokens(prompt, 8)
    assert rig2.engine.counters["prompt_tokens"] == 10, "the prompt is computed once"


def test_sampled_text_is_the_same_alone_in_a_crowd_and_after_preemption(
    make_rig: Any, make_request: Any
) -> None:
    def request(name: str) -> Submit:
        return Submit(
            request=make_request(name, prompt_of(9), temperature=0.9, top_p=0.95, seed=3, max_tokens=16)
        )

    alone = make_rig()
    alone.submit(request("r"))
    alone.run()
    crowd = make_rig(num_blocks=14, token_budget=24)
    for i in range(10):
        crowd.submit(
            Submit(request=make_request(f"x{i}", prompt_of(6 + i, i), temperature=1.0, seed=i, max_tokens=16))
        )
    crowd.submit(request("r"))
    crowd.run()
    assert crowd.engine.scheduler.num_preemptions > 0
    assert crowd.tokens("r") == alone.tokens("r")


@pytest.mark.parametrize("turns", range(8))
def test_an_abort_frees_everything_at_once(make_rig: Any, make_request: Any, turns: int) -> None:
    rig = make_rig(token_budget=16)
    rig.submit(Submit(request=make_request("gone", prompt_of(40), n=3, max_tokens=50)))
    rig.submit(Submit(request=make_request("stays", prompt_of(7), max_tokens=9)))
    for _ in range(turns):
        rig.turn()
    rig.engine.abort(Abort(["gone", "unknown"]))
    rig.engine.check_integrity()
    assert {s.request.id for s in rig.engine.scheduler.sequences()} <= {"stays"}
    rig.run()
    assert rig.tokens("stays") == reference_tokens(prompt_of(7), 9)
    assert rig.engine.pool.num_free == 64


@pytest.mark.parametrize("turns", range(2, 9))
def test_an_ended_sequence_frees_its_blocks_and_its_siblings_go_on(
    make_rig: Any, make_request: Any, turns: int
) -> None:
    rig = make_rig(num_blocks=16, token_budget=24)
    sampling = {"n": 3, "max_tokens": 20, "temperature": 1.0, "seed": 4}
    whole = make_rig()
    whole.submit(Submit(request=make_request("r", prompt_of(13), **sampling)))
    whole.run()
    rig.submit(Submit(request=make_request("r", prompt_of(13), **sampling)))
    for _ in range(turns):
        rig.turn()
    rig.engine.hear(EndSequence("r", 1))
    rig.engine.hear(EndSequence("r", 7))
    rig.engine.check_integrity()
    assert [s.index for s in rig.engine.scheduler.sequences() if s.index == 1] == []
    rig.run()
    assert [rig.tokens("r", i) for i in (0, 2)] == [whole.tokens("r", i) for i in (0, 2)]
    assert len(rig.tokens("r", 1)) < len(whole.tokens("r", 1))
    assert rig.engine.pool.num_free == 16


def test_stop_tokens_end_the_text_and_are_reported(make_rig: Any, make_request: Any) -> None:
    prompt = prompt_of(6)
    expected = reference_tokens(prompt, 8)
    rig = make_rig()
    rig.submit(Submit(request=make_request("r", prompt, stop_token_ids=(expected[3],))))
    rig.run()
    assert rig.tokens("r") == expected[: expected.index(expected[3]) + 1]
    assert rig.finish("r") == "stop"
    assert rig.deltas("r")[-1].stop_token_id == expected[3]


def test_min_tokens_bans_the_end_and_allowed_tokens_bind(make_rig: Any, make_request: Any) -> None:
    rig = make_rig()
    prompt = prompt_of(6)
    rig.submit(
        Submit(
            request=make_request(
                "r", prompt, allowed_token_ids=(0, 5, 9), min_tokens=4, logit_bias={0: 100.0}
            )
        )
    )
    rig.run()
    tokens = rig.tokens("r")
    assert len(tokens) == 5
    assert set(tokens[:4]) <= {5, 9}
    assert tokens[4] == 0


def test_logprobs_of_prompt_and_answer(make_rig: Any, make_request: Any) -> None:
    rig = make_rig(token_budget=16)
    prompt = prompt_of(21)
    for name in (
        "a",
        "b",
    ):  # the second would hit the prefix cache, which prompt log-probabilities must not use
        rig.submit(Submit(request=make_request(name, prompt, logprobs=2, prompt_logprobs=1)))
        rig.run()
    first = rig.deltas("a")[0]
    assert first.prompt_logprobs is not None
    assert first.prompt_logprobs[0] is None
    assert [entry.token_id for entry in first.prompt_logprobs[1:]] == prompt[1:]
    assert first.logprobs is not None
    assert first.logprobs[0].rank == 1
    assert first.logprobs[0].top[0][0] == first.token_ids[0]
    assert len(first.logprobs[0].top) == 2
    assert rig.deltas("b")[0].prompt_logprobs == first.prompt_logprobs


class Oracle:
    """A drafter that is right for a while, then wrong."""

    def __init__(self, right: int) -> None:
        self.right = right

    def propose(self, sequences: list[Sequence], limits: list[int]) -> list[list[int]]:
        drafts = []
        for sequence, limit in zip(sequences, limits, strict=True):
            true = reference_tokens(sequence.token_ids, limit)
            drafts.append([t if i < self.right else (t % 256) + 1 for i, t in enumerate(true)])
        return drafts

    def forget(self, sequence: Sequence) -> None:
        assert sequence is not None


@pytest.mark.parametrize("right", [0, 1, 2, 4])
def test_drafts_change_the_number_of_steps_and_nothing_else(
    make_rig: Any, make_request: Any, right: int
) -> None:
    prompt = prompt_of(9)
    rig = make_rig(speculation=Speculation(max_draft=4))
    rig.engine._drafter = Oracle(right)
    rig.submit(Submit(request=make_request("r", prompt, max_tokens=17)))
    rig.run()
    assert rig.tokens("r") == reference_tokens(prompt, 17)
    if right == 4:
        assert rig.engine.ledger.num_steps < 10
    rig.engine.check_integrity()


def test_ngram_drafts_are_exact_when_sampling(make_rig: Any, make_request: Any) -> None:
    texts = []
    for speculation in (None, Speculation(max_draft=4, ngram=2)):
        rig = make_rig(speculation=speculation)
        # A few allowed tokens make a repetitive text, so that drafts are proposed and sometimes accepted.
        rig.submit(
            Submit(
                request=make_request(
                    "r",
                    [1, 2, 1, 2, 1, 2],
                    temperature=1.0,
                    allowed_token_ids=(1, 2, 3),
                    seed=5,
                    max_tokens=60,
                )
            )
        )
        rig.run()
        texts.append(rig.tokens("r"))
    assert texts[0] == texts[1]
    assert rig.engine.counters["spec_accepted"] > 0


def test_new_weights_show_in_the_next_token_and_its_version(make_rig: Any, make_request: Any) -> None:
    rig = make_rig()
    admin = Admin(rig.engine, free_memory=lambda: None, model_path="fake:")
    prompt = prompt_of(9)
    rig.submit(Submit(request=make_request("old", prompt, max_tokens=40)))
    for _ in range(5):
        rig.turn()
    assert admin.call("update_weights", {"path": "fake:3", "version": 3}) == {"weight_version": 3}
    rig.submit(Submit(request=make_request("new", prompt)))
    rig.run()
    versions = [d.weight_version for d in rig.deltas("old")]
    assert versions == sorted(versions)
    assert set(versions) == {0, 3}
    assert rig.tokens("new") == reference_tokens(prompt, 8, version=3)
    assert rig.deltas("new")[0].num_cached_tokens == 0, "KV of old weights is not found again"


def test_recomputing_after_an_update_gives_the_new_weights_continuation(
    make_rig: Any, make_request: Any
) -> None:
    rig = make_rig()
    admin = Admin(rig.engine, free_memory=lambda: None, model_path="fake:")
    prompt = prompt_of(9)
    rig.submit(Submit(request=make_request("r", prompt, max_tokens=12)))
    for _ in range(5):
        rig.turn()
    so_far = rig.tokens("r")
    admin.call("update_weights", {"path": "fake:2", "in_flight": "recompute"})
    rig.run()
    assert rig.tokens("r") == so_far + reference_tokens(prompt + so_far, 12 - len(so_far), version=2)
    rig.engine.check_integrity()


def test_states_refuse_what_they_cannot_do(make_rig: Any, make_request: Any) -> None:
    rig = make_rig()
    freed: list[bool] = []
    admin = Admin(rig.engine, free_memory=lambda: freed.append(True), model_path="fake:")
    rig.submit(Submit(request=make_request("r", prompt_of(9), max_tokens=12)))
    for _ in range(4):
        rig.turn()
    admin.call("sleep", {"level": 1})
    assert freed
    for verb in ("sleep", "pause", "update_weights"):
        with pytest.raises(WrongState):
            admin.call(verb, {"path": "x"} if verb == "update_weights" else {})
    admin.call("wake", {})
    rig.run()
    assert rig.tokens("r") == reference_tokens(prompt_of(9), 12)
    with pytest.raises(RequestError, match="unknown verb"):
        admin.call("dance", {})
    with pytest.raises(RequestError):
        admin.call("sleep", {"depth": 1})


def test_a_request_that_can_never_fit_is_refused_at_once(make_rig: Any, make_request: Any) -> None:
    rig = make_rig(num_blocks=4, block_size=4)
    rig.submit(Submit(request=make_request("big", prompt_of(40))))
    assert rig.finish("big") == "error"
    rig.submit(Submit(request=make_request("edge", prompt_of(15), max_tokens=100)))
    rig.run()
    assert rig.finish("edge") == "length"
    assert len(rig.tokens("edge")) == 1


def test_a_step_that_breaks_takes_only_its_requests(
    make_rig: Any, make_request: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig()
    rig.submit(Submit(request=make_request("victim", prompt_of(9), n=2)))
    healthy: Callable[..., Any] = rig.engine.runner.forward
    monkeypatch.setattr(rig.engine.runner, "forward", lambda step: 1 / 0)
    rig.turn()
    monkeypatch.setattr(rig.engine.runner, "forward", healthy)
    assert [rig.finish("victim", i) for i in range(2)] == ["error", "error"]
    rig.engine.check_integrity()
    rig.submit(Submit(request=make_request("next", prompt_of(9))))
    rig.run()
    assert rig.tokens("next") == reference_tokens(prompt_of(9), 8)
