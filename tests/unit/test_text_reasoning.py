"""Thoughts and answers are told apart while they are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mortice.text.reasoning import ReasoningSplitter, reasoning_of

CASES = [
    ("maybe", "<think>\na b\n</think>\n\nyes", "a b", "yes"),
    ("maybe", " <think>a</think>", "a", ""),
    ("maybe", "yes <think>a</think>", "", "yes <think>a</think>"),
    ("maybe", "<thin", "", "<thin"),
    ("maybe", "", "", ""),
    ("open", "a </thin b</think> yes ", "a </thin b", "yes "),
    ("open", "\ncut off </thi", "cut off </thi", ""),
    ("open", "</think>\nyes", "", "yes"),
    ("none", "<think>a</think>", "", "<think>a</think>"),
]


def split(reasoning, text, cuts=()):
    splitter, at = ReasoningSplitter(reasoning), 0
    parts = []
    for size in [*cuts, len(text)]:
        parts.append(splitter.feed(text[at : at + size]))
        at += size
    parts.append(splitter.finish())
    return "".join(part.reasoning for part in parts), "".join(part.content for part in parts)


@pytest.mark.parametrize(("reasoning", "text", "thought", "content"), CASES)
def test_cases(reasoning, text, thought, content):
    assert split(reasoning, text) == (thought, content)


@given(st.sampled_from(CASES), st.lists(st.integers(0, 4), max_size=40))
def test_cuts_change_nothing(case, cuts):
    reasoning, text, thought, content = case
    assert split(reasoning, text, cuts) == (thought, content)


@given(
    st.sampled_from(["maybe", "open", "none"]),
    st.text("</think>a \n", max_size=40),
    st.lists(st.integers(0, 5), max_size=40),
)
def test_any_text_is_split_alike_at_any_cuts(reasoning, text, cuts):
    assert split(reasoning, text, cuts) == split(reasoning, text)


def test_what_the_prompt_says_of_reasoning():
    template = "{{ messages }}<think>"
    assert reasoning_of(template, "assistant\n<think>\n") == "open"
    assert reasoning_of(template, "assistant\n<think>\n\n</think>\n\n") == "none"
    assert reasoning_of(template, "assistant\n") == "maybe"
    assert reasoning_of("{{ messages }}", "assistant\n") == "none"
    assert reasoning_of(None, "") == "none"
