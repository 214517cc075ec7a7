"""Whose fault it is when a grammar cannot be followed, and that the user gets one line about it."""

import pytest
import torch
from llguidance import LLMatcher, LLTokenizer

from mortice.engine.guided import GrammarCompiler, GrammarError, GrammarMask

VOCABULARY = 257


@pytest.fixture(scope="module")
def compiler():
    made = GrammarCompiler(lambda: LLTokenizer("byte"), VOCABULARY)
    yield made
    made.close()


def mask_of(compiler: GrammarCompiler, regex: str) -> GrammarMask:
    return compiler.compile(LLMatcher.grammar_from_regex(regex), ()).result(20)


def write(mask: GrammarMask, output: bytes) -> None:
    for byte in output:
        mask.apply(torch.zeros(VOCABULARY))
        mask.advance([byte])


def test_a_mask_leaves_what_may_follow(compiler):
    mask = mask_of(compiler, "[a-c]d")
    logits = torch.zeros(VOCABULARY)
    mask.apply(logits)
    assert [i for i, value in enumerate(logits.tolist()) if value == 0] == list(b"abc")
    mask.advance(b"bd")
    assert mask.is_complete


def test_an_expression_that_explodes_on_the_way_is_the_requests_fault(compiler):
    mask = mask_of(compiler, "(((a{1,200}){1,200}){1,200}){1,200}")  # its first steps are harmless
    with pytest.raises(GrammarError, match="too many expressions") as error:
        write(mask, b"a" * 100)
    assert error.value.is_request_at_fault
    assert "\n" not in str(error.value)


def test_a_grammar_that_does_not_compile_is_the_requests_fault(compiler):
    with pytest.raises(GrammarError) as error:
        mask_of(compiler, "(a")
    assert error.value.is_request_at_fault


def test_a_token_out_of_step_is_our_fault(compiler):
    with pytest.raises(GrammarError) as error:
        mask_of(compiler, "[a-c]+").advance(b"z")
    assert not error.value.is_request_at_fault
