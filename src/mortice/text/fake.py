"""A text model without weights or files: one token a byte. For tests and for fake clusters."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mortice.text.alphabet import SPELLING
from mortice.text.load import TextModel

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|im_start|>", "<|im_end|>")  # ids 256 and 257; the second ends a sequence


def byte_text_model(chat_template: str | None = CHATML, added: Sequence[str] = ()) -> TextModel:
    """Ids 0 to 255 are bytes, then come SPECIAL and `added`, tokens that are not special."""
    return TextModel(
        _tokenizer(added),
        chat_template=chat_template,
        named_tokens={"eos_token": SPECIAL[1]},
        eos_token_ids=[257],
    )


def write_byte_model(folder: Path, chat_template: str = CHATML, added: Sequence[str] = ()) -> Path:
    """The same as a folder that `load_text_model` reads; returns it."""
    _tokenizer(added).save(str(folder / "tokenizer.json"))
    settings = {"eos_token": SPECIAL[1], "chat_template": chat_template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _tokenizer(added: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({char: byte for byte, char in enumerate(SPELLING)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added])
    return tokenizer
