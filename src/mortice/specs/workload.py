"""Traces of real traffic: arrival times, token counts and shared prefixes; no text.

Reads, plain or gzipped, the formats that publishers use:

    azure     CSV   TIMESTAMP (UTC, up to nine fractional digits), ContextTokens, GeneratedTokens
    mooncake  JSONL timestamp (ms), input_length, output_length, hash_ids (one id per 512 input tokens); of our own:
                    leaves_after (ms), when its client hangs up
    burstgpt  CSV   Timestamp (s), Request tokens, Response tokens; 0 response tokens mark a failed call
"""

import csv
import gzip
import io
import math
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from mortice.specs.errors import RequestError

TraceFormat = Literal["azure", "mooncake", "burstgpt"]

MOONCAKE_BLOCK = 512  # input tokens behind one hash id


class TraceRequest(msgspec.Struct, frozen=True):
    """One arrival. Equal leading entries of `blocks` mean equal leading tokens, `Trace.block_tokens` for
    each entry."""

    at_s: float  # since the first arrival of the file
    prompt_len: int  # tokens
    output_len: int  # tokens
    blocks: tuple[int, ...] = ()
    leaves_after_s: float | None = None  # its client hangs up so long after it arrived; None: it stays


class Clip(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to rows beyond a limit: `truncate` shortens them, `drop` leaves them out."""

    max_input: int | None = None
    max_output: int | None = None
    rule: Literal["truncate", "drop"] = "truncate"


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """Arrivals in time order, and what was done to get them from the file."""

    name: str
    format: TraceFormat
    requests: tuple[TraceRequest, ...]
    block_tokens: int = 0  # 0: the trace says nothing of prefixes
    num_failed_rows: int = 0  # calls that the trace itself marks as failed; left out
    num_clipped: int = 0  # shortened or dropped by `clipped`

    @property
    def mean_rate(self) -> float:
        """Requests a second between the first and the last arrival; 0 if all arrive at once."""
        span = self.requests[-1].at_s - self.requests[0].at_s if self.requests else 0.0
        return (len(self.requests) - 1) / span if span > 0 else 0.0

    def until(self, duration_s: float) -> "Trace":
        """The first `duration_s` seconds of the trace's own time."""
        return self._with(r for r in self.requests if r.at_s < duration_s)

    def scaled(self, factor: float) -> "Trace":
        """The same arrivals `factor` times as fast."""
        return self._with(msgspec.structs.replace(r, at_s=r.at_s / factor) for r in self.requests)

    def moved(self, by_s: Iterable[float]) -> "Trace":
        """Each arrival later by its entry of `by_s`, put back in time order."""
        late = (msgspec.structs.replace(r, at_s=r.at_s + d) for r, d in zip(self.requests, by_s, strict=True))
        return self._with(sorted(late, key=_at))

    def clipped(self, clip: Clip) -> "Trace":
        """Apply the clip rule and count the rows that it touched."""
        kept, touched = [], 0
        for request in self.requests:
            prompt_len = min(request.prompt_len, clip.max_input or request.prompt_len)
            output_len = min(request.output_len, clip.max_output or request.output_len)
            if (prompt_len, output_len) != (request.prompt_len, request.output_len):
                touched += 1
                if clip.rule == "drop":
                    continue
                request = msgspec.structs.replace(request, prompt_len=prompt_len, output_len=output_len)
            kept.append(request)
        return msgspec.structs.replace(self, requests=tuple(kept), num_clipped=self.num_clipped + touched)

    def _with(self, requests: Iterable[TraceRequest]) -> "Trace":
        return msgspec.structs.replace(self, requests=tuple(requests))


def read_trace(path: str | Path, *, strict: bool = False) -> Trace:
    """Read a trace file; the format is told from its first line. Rows are put in time order; with `strict` one that is not
    in order, or before time 0, is refused instead.

    Raises RequestError, with the line, for a file that cannot be read or is none of the formats above.
    """
    path = Path(path)
    try:
        with _open_text(path) as file:
            first = file.readline()
            format = _tell_format(first, path)
            lines = _Counted(file, first)
            try:
                rows = list(_READERS[format](lines))
            except (ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
                raise RequestError(f"{path}, line {lines.number}: {_say(error)}", param="trace") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot read {path}: {error}", param="trace") from error
    if strict:
        _require_order(rows, path, 1 if format == "mooncake" else 2)
    good = sorted((row for row in rows if row.output_len > 0), key=_at)
    if not good:
        raise RequestError(f"{path} holds no request", param="trace")
    start = good[0].at_s
    return Trace(
        name=path.name,
        format=format,
        requests=tuple(msgspec.structs.replace(r, at_s=round(r.at_s - start, 7)) for r in good),
        block_tokens=MOONCAKE_BLOCK if format == "mooncake" else 0,
        num_failed_rows=len(rows) - len(good),
    )


def _require_order(rows: list[TraceRequest], path: Path, first_line: int) -> None:
    before = 0.0
    for number, row in enumerate(rows, first_line):
        if not math.isfinite(row.at_s) or row.at_s < before:
            what = "is before time 0" if number == first_line else "is before the one above it"
            raise RequestError(f"{path}, line {number}: the arrival at {row.at_s:g} s {what}", param="trace")
        before = row.at_s


def _at(request: TraceRequest) -> float:
    return request.at_s


def _say(error: Exception) -> str:
    return f"no column {error}" if isinstance(error, KeyError) else str(error)


class _Counted:
    """The lines of a file whose first line was already read, with the number of the line given out last."""

    def __init__(self, file: io.TextIOBase, first: str) -> None:
        self._file, self._first, self.number = file, first, 0

    def __iter__(self) -> Iterator[str]:
        self.number = 1
        yield self._first
        for line in self._file:
            self.number += 1
            yield line


def _open_text(path: Path) -> io.TextIOWrapper:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return io.TextIOWrapper(gzip.open(path) if zipped else path.open("rb"), encoding="utf-8-sig", newline="")


def _tell_format(first: str, path: Path) -> TraceFormat:
    if first.lstrip().startswith("{"):
        return "mooncake"
    columns = {name.strip() for name in first.split(",")}
    if {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= columns:
        return "azure"
    if {"Timestamp", "Request tokens", "Response tokens"} <= columns:
        return "burstgpt"
    raise RequestError(
        f"{path} is no Azure, Mooncake or BurstGPT trace: {first.strip()[:60]!r}", param="trace"
    )


def _azure(lines: Iterable[str]) -> Iterator[TraceRequest]:
    epoch_s: int | None = None
    for row in csv.DictReader(lines):
        whole_s, fraction_s = _timestamp(row["TIMESTAMP"])
        # Seconds are taken from the first row's as integers: a float of the epoch has not enough digits for
        # 100 ns.
        epoch_s = whole_s if epoch_s is None else epoch_s
        at_s = whole_s - epoch_s + fraction_s
        yield TraceRequest(at_s, _count(row["ContextTokens"]), _count(row["GeneratedTokens"]))


_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(\.\d{1,9})?(Z|[+-]\d\d:\d\d)?")


def _timestamp(text: str) -> tuple[int, float]:
    """Whole seconds since the epoch, and the fraction. `datetime` alone takes six digits; Azure writes
    seven."""
    match = _TIMESTAMP.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not a timestamp: {text!r}")
    whole, fraction, zone = match.groups()
    moment = datetime.fromisoformat(whole + (zone or ""))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp()), float(fraction or 0)


class _MooncakeRow(msgspec.Struct):
    timestamp: float  # milliseconds
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()
    leaves_after: float | None = None  # milliseconds


def _mooncake(lines: Iterable[str]) -> Iterator[TraceRequest]:
    decoder = msgspec.json.Decoder(_MooncakeRow)
    for line in lines:
        if line.strip():
            row = decoder.decode(line)
            patience_s = None if row.leaves_after is None else row.leaves_after / 1000
            if patience_s is not None and not patience_s >= 0:
                raise ValueError(f"leaves_after is before it arrives: {row.leaves_after:g} ms")
            yield TraceRequest(
                row.timestamp / 1000,
                _positive(row.input_length),
                row.output_length,
                row.hash_ids,
                patience_s,
            )


def _burstgpt(lines: Iterable[str]) -> Iterator[TraceRequest]:
    for row in csv.DictReader(lines):
        yield TraceRequest(
            float(row["Timestamp"]), _count(row["Request tokens"]), int(row["Response tokens"])
        )


def _count(text: str) -> int:
    return _positive(int(text))


def _positive(count: int) -> int:
    if count < 1:
        raise ValueError(f"a prompt or an answer of {count} tokens")
    return count


_READERS = {"azure": _azure, "mooncake": _mooncake, "burstgpt": _burstgpt}
