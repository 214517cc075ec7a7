"""Loads all that turns text into token ids and back: from a Hugging Face folder or a GGUF file."""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from llguidance import LLTokenizer
from tokenizers import Tokenizer

from mortice.specs.errors import RequestError
from mortice.text.alphabet import BYTE_OF
from mortice.text.call_grammar import TokenTags
from mortice.text.gguf import read_gguf_metadata
from mortice.text.gguf_tokenizer import build_gguf_tokenizer
from mortice.text.grammar import token_tags
from mortice.text.vocabulary import Vocabulary

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TextModel:
    """The text side of a model. Knows nothing of weights."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        chat_template: str | None = None,
        tool_template: str | None = None,
        named_tokens: dict[str, str] | None = None,
        eos_token_ids: Sequence[int] = (),
        vocab_size: int = 0,
    ) -> None:
        """`named_tokens`: bos_token, eos_token and so on, as templates want them. `vocab_size`: of the
        logits, where it is larger than the tokenizer's."""
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.tool_template = tool_template or chat_template  # the template for requests with tools
        self.named_tokens = named_tokens or {}
        self.eos_token_ids = list(dict.fromkeys(eos_token_ids))
        self.vocabulary = _vocabulary(tokenizer, vocab_size)

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    @property
    def special_ids(self) -> frozenset[int]:
        return self.vocabulary.special_ids

    @cached_property
    def special_texts(self) -> dict[str, int]:
        """Special tokens by their text."""
        texts = ((self.tokenizer.id_to_token(index), index) for index in sorted(self.special_ids))
        return {text: index for text, index in texts if text is not None}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.vocabulary.decode(ids, skip_special_tokens)

    def llguidance_tokenizer(self) -> LLTokenizer:
        """The vocabulary as grammars need it; built once (some 0.2 s)."""
        return self._llguidance

    @cached_property
    def grammar_tags(self) -> TokenTags:
        """How this vocabulary spells the marks of tool calls and reasoning."""
        added = {token.content: index for index, token in self.tokenizer.get_added_tokens_decoder().items()}
        return token_tags(self._llguidance, added, self.eos_token_ids)

    @cached_property
    def _llguidance(self) -> LLTokenizer:
        return LLTokenizer(
            self.tokenizer.to_str(), n_vocab=self.vocab_size, eos_token=self.eos_token_ids or None
        )


def load_text_model(path: str | Path) -> TextModel:
    """Read a folder with tokenizer.json, a .gguf file, or a folder that holds one.

    Raises RequestError (param "model") that says what is missing or not supported.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise RequestError(f"{path} is neither a folder nor a .gguf file", param="model")
        return _from_gguf(path)
    if (path / "tokenizer.json").is_file():
        return _from_folder(path)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return _from_gguf(files[0])
    if files:
        names = ", ".join(file.name for file in files)
        raise RequestError(f"{path} holds several .gguf files, name one of them: {names}", param="model")
    if not path.is_dir():
        raise RequestError(f"there is no model at {path}", param="model")
    if (path / "tokenizer.model").is_file():
        raise RequestError(f"{path} has tokenizer.model only: convert it to tokenizer.json", param="model")
    raise RequestError(f"{path} has neither tokenizer.json nor a .gguf file", param="model")


def _from_gguf(path: Path) -> TextModel:
    metadata = read_gguf_metadata(path)
    tokenizer = build_gguf_tokenizer(metadata)
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    named = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(index, int) and index < len(tokens):
            named[f"{name}_token"] = tokens[index]
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    return TextModel(
        tokenizer,
        chat_template=metadata.get("tokenizer.chat_template"),
        tool_template=metadata.get("tokenizer.chat_template.tool_use"),
        named_tokens=named,
        eos_token_ids=[index for index in ends if index is not None],
        vocab_size=len(tokens),
    )


def _from_folder(folder: Path) -> TextModel:
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception for a file it cannot read
        raise RequestError(f"{folder / 'tokenizer.json'}: {error}", param="model") from error
    settings = _json(folder / "tokenizer_config.json")
    config = _json(folder / "config.json")
    generation = _json(folder / "generation_config.json")
    named = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"):
        token = settings.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            named[name] = text
    templates = _templates(folder, settings)
    return TextModel(
        tokenizer,
        chat_template=templates.get("default"),
        tool_template=templates.get("tool_use"),
        named_tokens=named,
        eos_token_ids=_eos_ids(tokenizer, named, generation, config),
        vocab_size=(config.get("text_config") or config).get("vocab_size") or 0,
    )


def _templates(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return {"default": file.read_text(encoding="utf-8")}
    template = settings.get("chat_template") or _json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}
    return {"default": template} if isinstance(template, str) else {}


def _eos_ids(
    tokenizer: Tokenizer, named: dict[str, str], generation: dict[str, Any], config: dict[str, Any]
) -> list[int]:
    listed = generation.get("eos_token_id", config.get("eos_token_id"))
    ids: list[int] = listed if isinstance(listed, list) else [] if listed is None else [listed]
    own = tokenizer.token_to_id(named["eos_token"]) if "eos_token" in named else None
    return ids if own is None else [*ids, own]


def _json(path: Path) -> dict[str, Any]:
    """The object in an optional file; {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RequestError(f"{path} is not JSON: {error}", param="model") from error
    if not isinstance(value, dict):
        raise RequestError(f"{path} must hold a JSON object", param="model")
    return value


def _vocabulary(tokenizer: Tokenizer, vocab_size: int) -> Vocabulary:
    added = tokenizer.get_added_tokens_decoder()
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {"type": None}
    steps = decoder.get("decoders", [decoder])
    kinds = {step["type"] for step in steps}
    table = [b""] * max(vocab_size, max(vocab.values(), default=-1) + 1)
    if "ByteLevel" in kinds:
        for text, index in vocab.items():
            table[index] = _byte_level(text)
    elif kinds & {"ByteFallback", "Metaspace", "Replace"}:
        for text, index in vocab.items():
            table[index] = text.replace("▁", " ").encode() if index in added else _sentencepiece(text)
    else:
        raise RequestError(f"tokenizers with the decoder {decoder['type']} are not supported", param="model")
    lead_space = any(
        (step["type"] == "Strip" and step["content"] == " " and step["start"] > 0)
        or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )
    special = frozenset(index for index, token in added.items() if token.special)
    return Vocabulary(table, special, lead_space)


def _byte_level(text: str) -> bytes:
    try:
        return bytes([BYTE_OF[char] for char in text])
    except KeyError:  # an added token that is not spelled in the alphabet stands for itself
        return text.encode()


def _sentencepiece(text: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else text.replace("▁", " ").encode()
