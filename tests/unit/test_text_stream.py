"""Streaming text equals whole text, whatever the cuts; stop strings equal a search through the whole."""

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mortice.specs.errors import RequestError
from mortice.text.stream import MAX_STOP, MAX_STOP_BYTES, TextStream, check_stop
from mortice.text.vocabulary import Vocabulary

# Bytes alone and in pieces that cut characters, text in which stop strings overlap, and two special tokens.
PIECES = [
    b"a",
    b"b",
    b"ab",
    b"aab",
    b" ",
    b"",
    *(bytes([x]) for x in "é日🎉".encode()),
    b"\xff",
    "日".encode(),
    b"x\xe6",
]
VOCABULARY = Vocabulary([*PIECES, b"<s>", b"</s>"], frozenset((len(PIECES), len(PIECES) + 1)))
IDS = st.lists(st.integers(-1, len(VOCABULARY)), max_size=40)
STOPS = st.lists(st.text("ab é日", min_size=1, max_size=4), max_size=MAX_STOP, unique=True)


@dataclass
class Stopped:
    text: str
    stop: str | None
    num_tokens: int


def stream(ids: list[int], cuts: list[int], **options: object) -> Stopped:
    """Push `ids` in pieces of the given sizes."""
    one = TextStream(VOCABULARY, **options)  # type: ignore[arg-type]
    text, at = "", 0
    for size in [*cuts, len(ids)]:
        text += one.push(ids[at : at + size])
        at += size
    return Stopped(text + one.finish(), one.stopped, one.num_tokens_used)


def naive(ids: list[int], stops: list[str], include: bool) -> Stopped:
    """Decode every beginning of the sequence anew; look for the stop string that is complete first."""
    text = VOCABULARY.decode(ids)
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return Stopped(text, None, len(ids))
    end, _, stop = min(ends)
    needed = len(ids)
    for num_tokens in range(len(ids), -1, -1):
        certain = TextStream(VOCABULARY).push(ids[:num_tokens])
        if len(certain) >= end:
            needed = num_tokens
    return Stopped(text[: end if include else end - len(stop)], stop, needed)


@given(IDS, st.lists(st.integers(0, 5), max_size=20), st.booleans())
def test_pushes_make_the_whole_text(ids, cuts, skip):
    assert stream(ids, cuts, skip_special_tokens=skip).text == VOCABULARY.decode(ids, skip)


@given(IDS, st.lists(st.integers(0, 5), max_size=20), STOPS, st.booleans())
def test_stop_strings_equal_a_search_through_the_whole(ids, cuts, stops, include):
    streamed = stream(ids, cuts, stop=stops, include_stop_str_in_output=include)
    assert streamed == naive(ids, stops, include)


@given(
    st.lists(st.integers(0, 3), max_size=40),
    st.lists(st.text("ab", min_size=1, max_size=9), min_size=1, max_size=2),
)
def test_stop_strings_that_repeat_themselves(ids, stops):
    assert stream(ids, [1] * len(ids), stop=stops) == naive(ids, stops, False)


@pytest.mark.parametrize("size", range(1, 9))
def test_a_stop_string_is_found_after_a_false_beginning(size):
    """All strings of a and b, after each of their beginnings: a mismatch falls back the right way."""
    ids = {char: PIECES.index(char.encode()) for char in "ab"}
    for letters in itertools.product("ab", repeat=size):
        stop = "".join(letters)
        for cut in range(size):
            text = stop[:cut] + stop
            found = stream([ids[char] for char in text], [1] * len(text), stop=[stop])
            assert found.text == text[: text.index(stop)]


@given(IDS, STOPS)
def test_nothing_certain_is_held_back(ids, stops):
    """What is held back is an incomplete character or may begin a stop string."""
    one, shown, seen = TextStream(VOCABULARY, stop=stops), "", TextStream(VOCABULARY)
    whole = ""
    for token_id in ids:
        shown += one.push([token_id])
        whole += seen.push([token_id])
        if one.stopped is not None:
            break
        held = whole[len(shown) :]
        assert whole.startswith(shown)
        assert not held or any(stop.startswith(held) for stop in stops)


def test_pieces_of_a_character_wait():
    one = TextStream(VOCABULARY)
    first, second = PIECES.index(b"\xc3"), PIECES.index(b"\xa9")
    assert [one.push([first]), one.push([second]), one.finish()] == ["", "é", ""]


def test_a_cut_off_character_ends_as_replacement():
    one = TextStream(VOCABULARY)
    assert one.push([PIECES.index(b"\xc3")]) == ""
    assert one.finish() == "\ufffd"


def test_tokens_after_a_stop_string_are_not_used():
    a, b = PIECES.index(b"a"), PIECES.index(b"b")
    one = TextStream(VOCABULARY, stop=["ab"])
    assert one.push([a, a, b, a, a]) == "a"
    assert (one.stopped, one.num_tokens_used) == ("ab", 3)
    assert one.push([a]) == ""
    assert (one.finish(), one.num_tokens_used) == ("", 3)


def test_kept_special_tokens_are_shown():
    start, end = len(PIECES), len(PIECES) + 1
    one = TextStream(VOCABULARY, keep_ids=[end])
    assert one.push([start, end]) == "</s>"


def test_leading_space_is_kept_after_a_prompt_and_dropped_at_the_start():
    vocabulary = Vocabulary([b" Hello", b" world"], frozenset(), lead_space=True)
    assert TextStream(vocabulary).push([0, 1]) == " Hello world"
    assert TextStream(vocabulary, at_start=True).push([0, 1]) == vocabulary.decode([0, 1]) == "Hello world"


def test_token_text_gives_bytes_of_part_characters():
    one = TextStream(VOCABULARY)
    assert one.token_text(PIECES.index(b"\xc3")) == ("\ufffd", b"\xc3")
    assert one.token_text(len(PIECES)) == ("<s>", b"<s>")
    assert one.token_text(10_000) == ("", b"")


@pytest.mark.parametrize("stop", [list("abcde"), [""], ["x" * (MAX_STOP_BYTES + 1)], ["\ud800"], [3]])
def test_stop_strings_that_cannot_be_honoured(stop):
    with pytest.raises(RequestError) as caught:
        check_stop(stop)
    assert caught.value.param == "stop"


def test_stop_may_be_one_string_or_none():
    assert check_stop("x") == ["x"]
    assert check_stop(None) == []
    assert check_stop(["x", "x"]) == ["x"]


def test_a_long_periodic_stop_string_is_found():
    stop = "ab" * 500 + "b"
    one = TextStream(VOCABULARY, stop=[stop])
    assert one.push([PIECES.index(b"ab")] * 700) == "ab" * 200
    assert one.push([PIECES.index(b"b")]) == ""
    assert one.stopped == stop
