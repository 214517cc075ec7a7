"""SmolLM2 from its GGUF file against transformers' reading of the same file.

Set MORTICE_SMOLLM2 to the file, or have it in the cache.
"""

import os
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from mortice.text.calls import ChatInput
from mortice.text.load import load_text_model
from mortice.text.stream import TextStream
from mortice.text.template import render_chat

torch.set_num_threads(1)

NUMERALS = "math: ∑ x² ≤ ½ ⅷ Ⅳ ٣"
TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two spaces,\ttabs\n\n\nand lines  \r\n",
    "I'll say it's DON'T 'RE we've",
    "naïve café Ångström ﬁn e\u0301",
    "日本語のテキスト、中文文本。한국어",
    "العربية עברית हिन्दी ไทย",
    "🎉👩‍👩‍👧‍👦🇯🇵 emoji",
    NUMERALS,
    "year 2026, 3.14159, 0xFF, 1e-9",
    "def f(x):\n    return x  # comment\n",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|endoftext|>a<repo_name>b <|im_end",
    "\u200b\u00a0\u2028\u2029\ufeff zero width",
    "\x00\x01\x7f\x80",
    "a" * 300 + " " * 50 + "!" * 100,
]


def model_path() -> Path:
    cached = sorted(Path.home().glob(".cache/mortice/models/smollm2/*.gguf"))
    path = os.environ.get("MORTICE_SMOLLM2") or (cached[0] if cached else None)
    if path is None or not Path(path).is_file():
        pytest.skip("no SmolLM2 file: run `mortice pull smollm2` or set MORTICE_SMOLLM2")
    return Path(path)


@pytest.fixture(scope="module")
def ours():
    return load_text_model(model_path())


@pytest.fixture(scope="module")
def theirs():
    """Transformers' tokenizer, with the split that the model was trained with.

    Reading a GGUF file, transformers leaves out the "smollm" pre-tokenizer, in which each digit stands alone;
    the model's own tokenizer and llama.cpp have it. It can show where numerals follow blanks.
    """
    path = model_path()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    return tokenizer


@pytest.fixture(scope="module")
def as_read():
    """Transformers' tokenizer as it comes."""
    path = model_path()
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.mark.parametrize("text", TEXTS)
def test_encodes_as_transformers(ours, theirs, as_read, text):
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    if text != NUMERALS:
        assert ids == as_read.encode(text)
    assert ours.decode(ids, skip_special_tokens=False) == text


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60))
def test_encodes_any_text_as_transformers(ours, theirs, text):
    assert ours.encode(text) == theirs.encode(text)


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab 12\n'.,é日🎉", max_size=60))
def test_encodes_digits_and_blanks_as_transformers(ours, theirs, text):
    assert ours.encode(text) == theirs.encode(text)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 49151) | st.integers(0, 300), max_size=30), skip=st.booleans())
def test_decodes_as_transformers(ours, theirs, ids, skip):
    assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 49151) | st.integers(17, 300), max_size=30), seed=st.integers(0, 99))
def test_streams_what_transformers_decodes(ours, theirs, ids, seed):
    cut = random.Random(seed)
    stream, text, at = TextStream(ours.vocabulary), "", 0
    while at < len(ids):
        size = cut.randint(1, 4)
        text += stream.push(ids[at : at + size])
        at += size
    assert text + stream.finish() == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_renders_as_transformers(ours, theirs, add_generation_prompt):
    for messages in (
        [{"role": "user", "content": "hi"}],
        [{"role": "system", "content": "be kind"}, {"role": "user", "content": "é\n"}],
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ],
    ):
        chat = ChatInput(messages=messages, add_generation_prompt=add_generation_prompt)
        text = render_chat(ours, chat)
        options = {"add_generation_prompt": add_generation_prompt}
        assert text == theirs.apply_chat_template(messages, tokenize=False, **options)
        encoded = theirs.apply_chat_template(messages, return_dict=False, **options)
        assert ours.encode(text, add_special_tokens=False) == encoded


def test_facts(ours, theirs):
    assert ours.vocab_size == len(theirs) == 49152
    assert ours.eos_token_ids == [theirs.eos_token_id]
    assert ours.special_ids == {i for i, token in theirs.added_tokens_decoder.items() if token.special}
    assert ours.llguidance_tokenizer() is ours.llguidance_tokenizer()
    assert ours.llguidance_tokenizer().vocab_size == 49152
