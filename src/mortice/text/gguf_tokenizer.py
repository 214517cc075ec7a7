"""Builds a tokenizer from what a GGUF file says of it.

The file names the algorithm (`tokenizer.ggml.model`) and, for byte-level BPE, how text is split before
merging (`tokenizer.ggml.pre`); vocabulary, merges or scores, and the type of each token follow. The splits
are those of the tokenizers the names stand for.
"""

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mortice.specs.errors import RequestError
from mortice.text.alphabet import BYTE_OF, SPELLING

_CONTROL = 3
_USER_DEFINED = 4

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_DIGITS = "digits"  # each digit alone, then as GPT-2
_GPT2 = "gpt2"
SPLITS = {
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "gpt-2": _GPT2,
    "default": _GPT2,
}


def build_gguf_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer a file's metadata describes. Raises RequestError naming an algorithm or split that is
    unknown."""
    kind = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise RequestError("the GGUF file holds no vocabulary (tokenizer.ggml.tokens)", param="model")
    if kind == "gpt2":
        tokenizer = _byte_level(metadata, tokens)
    elif kind == "llama":
        gemma = str(metadata.get("general.architecture", "")).startswith("gemma")
        tokenizer = _gemma(metadata, tokens) if gemma else _sentencepiece(metadata, tokens)
    else:
        raise RequestError(
            f"tokenizers of kind {kind!r} are not supported: gpt2 and llama are", param="model"
        )
    _add_tokens(tokenizer, metadata, tokens)
    _add_frame(tokenizer, metadata, tokens)
    return tokenizer


def _byte_level(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    split = metadata.get("tokenizer.ggml.pre", "default")
    if split not in SPLITS:
        raise RequestError(
            f"the pre-tokenizer {split!r} of the GGUF file is not supported: {', '.join(sorted(SPLITS))} are",
            param="model",
        )
    pattern = SPLITS[split]
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    vocab = {
        text if kind in (_CONTROL, _USER_DEFINED) else _spelled(text): index
        for index, (text, kind) in enumerate(zip(tokens, types, strict=True))
    }
    merges = [_pair(merge) for merge in metadata.get("tokenizer.ggml.merges") or ()]
    # Llama 3 takes a word that is a token as it stands, even where its merges would not lead there.
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=pattern == _LLAMA3))
    steps: list[Any]
    if pattern == _GPT2:
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    elif pattern == _DIGITS:
        steps = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    else:
        steps = [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    if pattern == _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _spelled(text: str) -> str:
    """The token in the byte alphabet; some files hold a few tokens as plain text."""
    return (
        text if all(char in BYTE_OF for char in text) else "".join(SPELLING[byte] for byte in text.encode())
    )


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise RequestError("the GGUF file holds no scores for its sentencepiece vocabulary", param="model")
    tokenizer = _merging(tokens, _merges(tokens, scores), _unknown(metadata, tokens))
    escape = normalizers.Replace(" ", "▁")
    after: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), escape])
        after.append(decoders.Strip(content=" ", left=1))
    else:
        tokenizer.normalizer = escape
    tokenizer.decoder = decoders.Sequence(after)
    return tokenizer


def _gemma(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    # Runs of spaces stand in the file as spaces, but are looked up escaped; Gemma's scores do not follow the
    # order of its merges, the order of the tokens does.
    spelled = ["▁" * len(text) if text and not text.strip(" ") else text for text in tokens]
    ranks = [-float(index) for index in range(len(spelled))]
    tokenizer = _merging(spelled, _merges(spelled, ranks), _unknown(metadata, tokens))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def _merging(tokens: list[str], merges: list[tuple[str, str]], unknown: str | None) -> Tokenizer:
    vocab = {text: index for index, text in enumerate(tokens)}
    return Tokenizer(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))


def _unknown(metadata: Mapping[str, Any], tokens: list[str]) -> str | None:
    index = metadata.get("tokenizer.ggml.unknown_token_id")
    return tokens[index] if isinstance(index, int) and index < len(tokens) else None


def _merges(tokens: list[str], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, the best-scored token first.

    Among the ways to one token the order is the one `transformers` chose: longer left part first.
    """
    known = set(tokens)
    ways = [
        (-score, -cut, text)
        for text, score in zip(tokens, scores, strict=True)
        for cut in range(1, len(text))
        if text[:cut] in known and text[cut:] in known
    ]
    ways.sort(key=lambda way: way[:2])
    return [(text[:-cut], text[-cut:]) for _, cut, text in ways]


def _add_tokens(tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: list[str]) -> None:
    control: list[AddedToken] = []
    defined: list[AddedToken] = []
    for text, kind in zip(tokens, metadata.get("tokenizer.ggml.token_type") or (), strict=False):
        if kind == _CONTROL and text:
            control.append(AddedToken(text, normalized=False, special=True))
        elif kind == _USER_DEFINED and tokenizer.token_to_id(text) is not None:
            defined.append(AddedToken(text, normalized=False, special=False))
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(defined)


def _add_frame(tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: list[str]) -> None:
    """Tokens put before and after a text, where the file asks for them."""
    starts_by_habit = metadata["tokenizer.ggml.model"] == "llama" or (
        SPLITS.get(metadata.get("tokenizer.ggml.pre", "default")) == _LLAMA3
    )
    before: list[tuple[str, int]] = []
    after: list[tuple[str, int]] = []
    for name, habit, place in (("bos", starts_by_habit, before), ("eos", False, after)):
        index = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if index is not None and metadata.get(f"tokenizer.ggml.add_{name}_token", habit):
            place.append((tokens[index], index))
    if before or after:
        single = [*(text for text, _ in before), "$A", *(text for text, _ in after)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=[*single, "$B"], special_tokens=before + after
        )
