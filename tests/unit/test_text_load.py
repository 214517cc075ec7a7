"""Tokenizers read from folders and GGUF files; what cannot be read is refused by name."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mortice.specs.errors import RequestError
from mortice.text.alphabet import BYTE_OF, SPELLING
from mortice.text.fake import byte_text_model, write_byte_model
from mortice.text.gguf import read_gguf_metadata
from mortice.text.load import load_text_model


def gguf_bytes(metadata):
    """A GGUF head without tensors, written after the format's description."""

    def string(text):
        raw = text.encode()
        return struct.pack("<Q", len(raw)) + raw

    def typed(value):
        if isinstance(value, bool):
            return 7, struct.pack("<?", value)
        if isinstance(value, int):
            return 4, struct.pack("<I", value)
        if isinstance(value, float):
            return 6, struct.pack("<f", value)
        if isinstance(value, str):
            return 8, string(value)
        kind = typed(value[0])[0]
        return 9, struct.pack("<IQ", kind, len(value)) + b"".join(typed(item)[1] for item in value)

    out = b"GGUF" + struct.pack("<IQQ", 3, 0, len(metadata))
    for key, value in metadata.items():
        kind, raw = typed(value)
        out += string(key) + struct.pack("<I", kind) + raw
    return out


def byte_level(**more):
    """256 bytes, one merge, a control and a user-defined token."""
    tokens = [*SPELLING, "ab", "<|end|>", "<think>"]
    keys = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [1] * 257 + [3, 4],
        "merges": ["a b"],
        "eos_token_id": 257,
        **more,
    }
    return {
        "general.architecture": "llama",
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not None},
        "tokenizer.chat_template": "{{ messages }}",
    }


def load(tmp_path, metadata):
    file = tmp_path / "model.gguf"
    file.write_bytes(gguf_bytes(metadata))
    return load_text_model(tmp_path)


def test_byte_alphabet():
    assert len(set(SPELLING)) == 256
    assert SPELLING[ord(" ")] == "Ġ"
    assert SPELLING[ord("\n")] == "Ċ"
    assert all(BYTE_OF[SPELLING[byte]] == byte for byte in range(256))


def test_metadata_comes_back_as_written(tmp_path):
    metadata = {"a": 3, "b": "é", "c": True, "d": [1, 2], "e": ["x", ""], "f": [0.5], "g": 1.5}
    file = tmp_path / "x.gguf"
    file.write_bytes(gguf_bytes(metadata))
    assert read_gguf_metadata(file) == metadata


@given(st.integers(0, 400), st.binary(max_size=8))
def test_a_damaged_file_is_refused(tmp_path_factory, cut, junk):
    whole = gguf_bytes({"a": 3, "tokenizer.ggml.tokens": ["x"] * 20, "b": [1, 2, 3]})
    file = tmp_path_factory.mktemp("gguf") / "x.gguf"
    file.write_bytes((whole[: min(cut, len(whole) - 1)] + junk)[: len(whole) - 1])
    with pytest.raises(RequestError) as caught:
        read_gguf_metadata(file)
    assert caught.value.param == "model"


def test_gguf_byte_level(tmp_path):
    model = load(tmp_path, byte_level())
    assert model.encode("abé<|end|><think>") == [256, *"é".encode(), 257, 258]
    assert model.eos_token_ids == [257]
    assert model.special_ids == {257}
    assert model.special_texts == {"<|end|>": 257}
    assert model.vocab_size == 259
    assert model.chat_template == "{{ messages }}"
    assert model.decode([256, 257, 258]) == "ab<think>"
    assert model.decode([256, 257], skip_special_tokens=False) == "ab<|end|>"


def test_gguf_frame(tmp_path):
    model = load(tmp_path, byte_level(bos_token_id=257, add_bos_token=True))
    assert model.encode("ab") == [257, 256]
    assert model.encode("ab", add_special_tokens=False) == [256]


def test_llama_3_adds_its_first_token_unless_told_not_to(tmp_path):
    assert load(tmp_path, byte_level(pre="llama-bpe", bos_token_id=257)).encode("ab") == [257, 256]
    quiet = byte_level(pre="llama-bpe", bos_token_id=257, add_bos_token=False)
    assert load(tmp_path, quiet).encode("ab") == [256]


def test_digits_stand_alone_for_smollm(tmp_path):
    metadata = byte_level(merges=["1 2"])
    metadata["tokenizer.ggml.tokens"][256] = "12"
    assert load(tmp_path, metadata).encode("12") == [256]
    metadata["tokenizer.ggml.pre"] = "smollm"
    assert load(tmp_path, metadata).encode("12") == [*b"12"]


def test_turn_ends_are_ends(tmp_path):
    assert load(tmp_path, byte_level(eot_token_id=258)).eos_token_ids == [257, 258]


@pytest.mark.parametrize(
    ("change", "named"),
    [({"pre": "bloom"}, "bloom"), ({"model": "bert"}, "bert"), ({"tokens": None}, "vocabulary")],
)
def test_unknown_tokenizers_are_refused_by_name(tmp_path, change, named):
    with pytest.raises(RequestError, match=named) as caught:
        load(tmp_path, byte_level(**change))
    assert caught.value.param == "model"


def test_folder(tmp_path):
    model = load_text_model(write_byte_model(tmp_path))
    assert model.encode("é<|im_end|>") == [*"é".encode(), 257]
    assert model.eos_token_ids == [257]
    assert model.named_tokens == {"eos_token": "<|im_end|>"}


def test_folder_with_every_file(tmp_path):
    write_byte_model(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("jinja")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, 3]}))
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 300, "eos_token_id": 5}))
    model = load_text_model(tmp_path)
    assert model.chat_template == "jinja"
    assert model.eos_token_ids == [256, 3, 257]
    assert model.vocab_size == 300
    assert model.decode([299, 97]) == "a"


def test_folder_with_named_templates(tmp_path):
    write_byte_model(tmp_path)
    templates = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    model = load_text_model(tmp_path)
    assert (model.chat_template, model.tool_template) == ("d", "t")


def test_places_that_hold_no_model(tmp_path):
    for place, said in ((tmp_path, "neither"), (tmp_path / "missing", "no model")):
        with pytest.raises(RequestError, match=said):
            load_text_model(place)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(RequestError, match=r"tokenizer\.model"):
        load_text_model(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(RequestError, match="neither a folder"):
        load_text_model(tmp_path / "a.txt")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(RequestError, match=r"tokenizer\.json"):
        load_text_model(tmp_path)


def test_several_gguf_files_must_be_told_apart(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(gguf_bytes(byte_level()))
    with pytest.raises(RequestError, match=r"a\.gguf, b\.gguf"):
        load_text_model(tmp_path)
    assert load_text_model(tmp_path / "a.gguf").vocab_size == 259


@given(st.lists(st.integers(0, 259)))
def test_decoding_is_the_tokenizers_own(ids):
    model = byte_text_model(added=["<think>", "é!"])
    for skip in (True, False):
        assert model.decode(ids, skip) == model.tokenizer.decode(ids, skip_special_tokens=skip)
