"""Reading an audit log: is every link there, and what does it say?"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from mortice.obs.audit import GENESIS, MAX_LINE, SPINE, chains_in
from mortice.obs.audit_keys import PublicKey, public_key

HMAC_DIGITS = 64  # of a head's signature in logs of before Ed25519, whose signatures have 128


class ChainReport(msgspec.Struct, frozen=True, kw_only=True):
    """What verification of one chain found; `ok` when no problem was."""

    chain: str
    ok: bool
    num_records: int
    num_gaps: int
    num_recovered: int
    head: str
    problems: tuple[str, ...] = ()


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole log: every chain, and the spine that holds their heads."""

    ok: bool
    num_records: int
    chains: tuple[ChainReport, ...]


def verify(
    folder: Path, *, anchor: tuple[int, str] | None = None, key: PublicKey | None = None
) -> AuditReport:
    """Check links, numbers, clocks, signatures, and that every head the spine ever wrote down is still in its chain.

    `anchor` is a (seq, hash) of the spine kept elsewhere: what was cut off the spine since then shows. `key` is the log's
    public key kept elsewhere (else the one beside the log is taken): a log that someone signed anew shows.
    """
    heads, spine_problems = _signed_heads(folder, key or public_key(folder))
    reports = []
    for chain in chains_in(folder):
        reports.append(_verify_chain(folder, chain, heads.pop(chain, {})))
    for chain in heads:
        reports.append(_missing(chain))
    spine = _verify_chain(folder, SPINE, {anchor[0]: anchor[1]} if anchor else {})
    if spine_problems:
        spine = msgspec.structs.replace(spine, ok=False, problems=(*spine.problems, *spine_problems[:20]))
    reports.append(spine)
    return AuditReport(
        ok=all(r.ok for r in reports), num_records=sum(r.num_records for r in reports), chains=tuple(reports)
    )


def _signed_heads(folder: Path, key: PublicKey | None) -> tuple[dict[str, dict[int, str]], list[str]]:
    """By chain, the hash of each record that the spine names; and what is wrong with the signatures."""
    heads: dict[str, dict[int, str]] = {}
    problems: list[str] = []
    old: list[int] = []
    for record in _records_quietly(folder, SPINE):
        if record.get("kind") != "head":
            continue
        chain, seq, digest = str(record["chain"]), int(record["head_seq"]), str(record["head_hash"])
        heads.setdefault(chain, {})[seq] = digest
        signature = str(record.get("signature"))
        if len(signature) == HMAC_DIGITS:
            old.append(int(record.get("seq", -1)))
        elif key is None or not key.verifies(chain, seq, digest, signature):
            problems.append(f"record {record.get('seq')}: the signature over {chain} is wrong")
    if old:
        problems.insert(
            0,
            f"{len(old)} heads (records {min(old)} to {max(old)}) "
            "are signed with HMAC-SHA256, the format of before Ed25519, which "
            f"a public key cannot check: move {folder} aside, and a new log begins; the old one stays readable there",
        )
    return heads, problems


def records(folder: Path, chain: str) -> Iterator[dict[str, Any]]:
    """Every record of a chain in order, unverified. Raises ValueError at a line that is none."""
    for _, line in _lines(folder, chain):
        yield msgspec.json.decode(line)


def _verify_chain(folder: Path, chain: str, heads: dict[int, str]) -> ChainReport:
    previous, expected, gaps, recovered = GENESIS, 0, 0, 0
    clocks: dict[str, int] = {}
    problems: list[str] = []
    missing = dict(heads)
    for number, line in _lines(folder, chain):
        try:
            record = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError:
            problems.append(f"line {number} is not a record")
            previous, expected = hashlib.sha256(line).hexdigest(), expected + 1
            continue
        if record.get("prev") != previous:
            problems.append(f"line {number}: the link to the record before it is broken")
        if record.get("seq") != expected:
            problems.append(f"line {number}: number {record.get('seq')} where {expected} belongs")
        if msgspec.json.encode(record, order="sorted") != line:
            problems.append(f"line {number} is not in its canonical form")
        gaps += record.get("kind") == "gap"
        recovered += record.get("kind") == "recovered"
        boot, mono = str(record.get("boot_id")), record.get("mono_ns")
        if record.get("kind") not in ("event", "recovered") and isinstance(mono, int):
            if mono + 60_000_000_000 < clocks.get(
                boot, 0
            ):  # several writers queue side by side; a minute is none
                problems.append(f"line {number}: its clock runs backwards")
            clocks[boot] = max(mono, clocks.get(boot, 0))
        previous = hashlib.sha256(line).hexdigest()
        expected = record["seq"] + 1 if isinstance(record.get("seq"), int) else expected + 1
        if missing.get(record.get("seq", -1)) == previous:
            del missing[record["seq"]]
        if len(problems) > 20:
            break
    if missing and len(problems) <= 20:
        worst = max(missing)
        problems.append(
            f"{len(missing)} heads in the spine are not in the chain (the latest names record {worst})"
        )
    return ChainReport(
        chain=chain, ok=not problems, num_records=expected, num_gaps=gaps, num_recovered=recovered,
        head=previous, problems=tuple(problems),
    )  # fmt: skip


def _missing(chain: str) -> ChainReport:
    return ChainReport(
        chain=chain, ok=False, num_records=0, num_gaps=0, num_recovered=0, head=GENESIS,
        problems=("the spine names this chain, and its file is gone",),
    )  # fmt: skip


def _records_quietly(folder: Path, chain: str) -> Iterator[dict[str, Any]]:
    for _, line in _lines(folder, chain):
        try:
            yield msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError:
            continue  # the check of the chain itself reports it


def _lines(folder: Path, chain: str) -> Iterator[tuple[int, bytes]]:
    path = folder / f"{chain}.jsonl"
    if not path.exists():
        return
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            yield number, line.removesuffix(b"\n")
