"""What each token id stands for in bytes, and the plain way back from ids to text.

It needs no tokenizer library, so a process that only writes answers holds this table and nothing else.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Ids and the bytes they stand for. The text of ids is the UTF-8 of their bytes laid end to end."""

    token_bytes: list[bytes]  # by id; b"" for an id that no token has
    special_ids: frozenset[int]  # left out of text when special tokens are skipped
    lead_space: bool = False  # encoding puts a space before a text, so decoding a whole text takes one off

    def __len__(self) -> int:
        return len(self.token_bytes)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence. Bytes that are no UTF-8 become U+FFFD; ids outside the table are
        nothing."""
        table, special = self.token_bytes, self.special_ids if skip_special_tokens else ()
        raw = b"".join(table[i] for i in ids if 0 <= i < len(table) and i not in special)
        text = raw.decode(errors="replace")
        return text[1:] if self.lead_space and text.startswith(" ") else text

    def token_text(self, token_id: int) -> tuple[str, bytes]:
        """One token as text (U+FFFD for a part of a character) and as bytes, special tokens included."""
        raw = self.token_bytes[token_id] if 0 <= token_id < len(self.token_bytes) else b""
        return raw.decode(errors="replace"), raw
