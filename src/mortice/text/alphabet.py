"""The alphabet in which byte-level BPE spells bytes: 256 printable characters, one a byte (GPT-2's choice).

Bytes that print in Latin-1 spell themselves; the others take the characters from U+0100 on, in order.
"""

_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}


def _spelling() -> list[str]:
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in _PRINTABLE else next(others)) for byte in range(256)]


SPELLING = _spelling()  # [256], the character of each byte
BYTE_OF = {char: byte for byte, char in enumerate(SPELLING)}
