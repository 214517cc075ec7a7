import asyncio

import pytest

from mortice.bench.prompts import ID_RANGE, WORDS, Calibration, PromptMaker, calibrate
from mortice.bench.sse import SSEReader
from mortice.specs.errors import RequestError


async def silent(prompt):
    return None


def by_words(prompt):
    return len(prompt) + 1 if isinstance(prompt, list) else 6 + len(prompt.split())


def by_bytes(prompt):
    return None if isinstance(prompt, list) else len(prompt)


def oddly(prompt):
    return len(prompt) if isinstance(prompt, list) else len(prompt.split()) ** 2


def counter(count):
    async def ask(prompt):
        return count(prompt)

    return ask


def agree(source="auto", usage=silent, tokenize=silent):
    return asyncio.run(calibrate(source, usage=usage, tokenize=tokenize))


@pytest.mark.parametrize("count", [by_words, by_bytes])
@pytest.mark.parametrize("length", [20, 128, 1000])
def test_prompts_have_the_length_that_the_server_counts(count, length):
    maker = PromptMaker(agree(usage=counter(count)), seed=1)
    slope = 1 if count is by_words else 5
    assert abs(count(maker.make("x", length)) - length) <= slope / 2


def test_tokenize_serves_where_usage_does_not():
    calibration = agree(tokenize=counter(by_words))
    assert (calibration.counted_by, calibration.tokens_per_word) == ("tokenize", 1.0)


def test_a_server_that_counts_nothing_is_said_to():
    assert agree().counted_by == "nothing"


def test_words_off_the_line_give_way_to_ids():
    assert agree(usage=counter(oddly)).source == "token-ids"
    assert agree("words", usage=counter(oddly)).source == "words"
    assert abs(agree("words", usage=counter(oddly)).checked_error) > 0.02


def test_id_prompts_allow_for_the_start_token():
    maker = PromptMaker(agree("token-ids", usage=counter(by_words)), seed=1)
    prompt = maker.make("x", 100)
    assert len(prompt) == 99
    assert all(ID_RANGE[0] <= token < ID_RANGE[1] for token in prompt)


def test_ids_that_the_server_refuses_are_refused_by_option():
    with pytest.raises(RequestError) as raised:
        agree("token-ids")
    assert raised.value.param == "--prompts"


def test_prompts_are_distinct_and_seeded():
    line = Calibration(source="words", counted_by="usage")
    prompts = [PromptMaker(line, seed=1).make(f"run {i}", 64) for i in range(50)]
    assert len(set(prompts)) == 50
    assert prompts[0] == PromptMaker(line, seed=1).make("run 0", 64)
    assert prompts[0] != PromptMaker(line, seed=2).make("run 0", 64)


@pytest.mark.parametrize("source", ["words", "token-ids"])
def test_equal_blocks_are_equal_prefixes(source):
    maker = PromptMaker(Calibration(source=source, counted_by="usage"), seed=1)
    one, two, three = (maker.make("x", 20, blocks, 8) for blocks in ((1, 2, 3), (1, 2, 9), (5, 2, 3)))
    pieces = [p if source == "token-ids" else p.split()[1:] for p in (one, two, three)]
    assert [len(p) for p in pieces] == [20, 20, 20]
    assert pieces[0][:16] == pieces[1][:16]
    assert pieces[0][16:] != pieces[1][16:]
    assert pieces[0][:8] != pieces[2][:8]
    assert pieces[0][8:16] == pieces[2][8:16]


def test_clipped_prompts_keep_their_shared_prefix():
    maker = PromptMaker(Calibration(source="token-ids", counted_by="usage"), seed=1)
    long, short = maker.make("a", 40, (1, 2, 3, 4, 5), 8), maker.make("b", 12, (1, 2, 3), 8)
    assert long[:12] == short


def test_words_are_all_of_one_length_and_distinct():
    assert {len(word) for word in WORDS} == {4}
    assert len(set(WORDS)) == len(WORDS)


def test_events_survive_any_cut():
    stream = b': hello\n\ndata: {"a": 1}\n\nevent: x\r\ndata:two\r\ndata: lines\r\n\r\ndata: [DONE]\n\n'
    for cut in range(len(stream)):
        reader = SSEReader()
        events = [*reader.feed(stream[:cut]), *reader.feed(stream[cut:])]
        assert events == [b'{"a": 1}', b"two\nlines", b"[DONE]"]
