"""Names of blocks: a hash chain over the tokens, so that equal names mean equal content and equal history."""

import hashlib
from array import array
from collections.abc import Sequence


def chain_root(*, model: str, weight_version: int, adapter: str | None, salt: str) -> bytes:
    """Parent of a sequence's first block.

    Every field is tagged with its length, so no two different sets of fields can spell the same bytes (a salt that
    looks like an adapter's name, for one). Tenants with different salts never share a block.
    """
    digest = hashlib.sha256()
    for field in (model, str(weight_version), adapter, salt):
        data = b"-" if field is None else b"+%d:" % len(field.encode()) + field.encode()
        digest.update(data)
    return digest.digest()


def extend_chain(parent: bytes, token_ids: Sequence[int], start: int, block_size: int) -> list[bytes]:
    """Hashes of the full blocks in token_ids[start:]; `start` lies on a block boundary and `parent` names its past."""
    hashes = []
    for left in range(start, len(token_ids) - block_size + 1, block_size):
        block = array("i", token_ids[left : left + block_size]).tobytes()
        parent = hashlib.sha256(parent + block).digest()
        hashes.append(parent)
    return hashes
