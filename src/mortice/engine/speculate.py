"""Guesses at the next tokens. A guess costs a row in the step; a right one saves a step."""

from typing import Protocol

from mortice.sched.sequence import Sequence


class Drafter(Protocol):
    def propose(self, sequences: list[Sequence], limits: list[int]) -> list[list[int]]:
        """Up to limits[i] likely next tokens for each sequence, best guess first in time."""

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""


class NgramDrafter:
    """Looks the newest tokens up in the sequence's own past, through an index that grows with it."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self._seen: dict[Sequence, tuple[int, dict[tuple[int, ...], int]]] = {}

    def propose(self, sequences: list[Sequence], limits: list[int]) -> list[list[int]]:
        return [
            self._propose(s, limit) if limit > 0 else [] for s, limit in zip(sequences, limits, strict=True)
        ]

    def _propose(self, sequence: Sequence, limit: int) -> list[int]:
        tokens = sequence.token_ids
        done, follows = self._seen.get(sequence, (0, {}))
        # Index every n-gram by the position after its latest occurrence; the one at the very end has no successor yet.
        for end in range(max(done, 1), len(tokens)):
            for size in range(1, min(self.longest, end) + 1):
                follows[tuple(tokens[end - size : end])] = end
        self._seen[sequence] = (len(tokens), follows)
        for size in range(min(self.longest, len(tokens)), 0, -1):
            at = follows.get(tuple(tokens[-size:]))
            if at is not None:
                return tokens[at : at + limit]
        return []

    def forget(self, sequence: Sequence) -> None:
        self._seen.pop(sequence, None)


class DraftLength:
    """How many tokens to guess for one sequence: grows after full success, falls to zero where guesses fail.

    Keeps a moving average of accepted / proposed. Below `floor` it proposes nothing, but probes with one token every
    `probe` steps, so that a text that turns repetitive is noticed.
    """

    def __init__(self, longest: int, floor: float = 0.25, probe: int = 16) -> None:
        self.longest, self.floor, self.probe = longest, floor, probe
        self.rate = 0.6
        self._idle = 0

    def limit(self) -> int:
        if self.rate >= self.floor:
            return max(1, round(self.longest * min(1.0, self.rate + 0.25)))
        self._idle += 1
        if self._idle >= self.probe:
            self._idle = 0
            return 1
        return 0

    def observe(self, num_proposed: int, num_accepted: int) -> None:
        if num_proposed:
            self.rate += 0.2 * (num_accepted / num_proposed - self.rate)
