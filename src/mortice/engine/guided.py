"""Grammars at work: one llguidance matcher a sequence, compiled off the loop, advanced with every accepted token."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)


class GrammarError(Exception):
    """The grammar cannot be compiled or followed any further, or the output fell out of step with it.

    `is_request_at_fault` is false for the last alone: that would be a mistake of ours.
    """

    def __init__(self, message: str, *, is_request_at_fault: bool) -> None:
        super().__init__(message)
        self.is_request_at_fault = is_request_at_fault


class GrammarMask:
    """A grammar at its present position. Implements the sampler's TokenMask."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros((1, -(-vocab_size // 32)), dtype=np.int32)
        self._vocab_size = vocab_size

    def apply(self, logits: Tensor) -> None:
        import llguidance.numpy as llg

        llg.fill_next_token_bitmask(self._matcher, self._bits, 0)
        if self._matcher.is_error():
            raise _error_of(self._matcher)
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: logits.shape[-1]]
        logits.masked_fill_(torch.from_numpy(allowed == 0).to(logits.device), -torch.inf)

    def advance(self, token_ids: Sequence[int]) -> None:
        """Follow accepted tokens. Raises GrammarError if they do not fit."""
        for token_id in token_ids:
            if self._matcher.is_stopped():
                return
            if not self._matcher.consume_token(token_id):
                raise _error_of(self._matcher)

    def copy(self) -> "GrammarMask":
        """The same grammar at the same position, to go its own way (n > 1)."""
        return GrammarMask(self._matcher.deep_copy(), self._vocab_size)

    @property
    def is_complete(self) -> bool:
        """Nothing can follow: the output is whole."""
        return bool(self._matcher.is_stopped())


class GrammarCompiler:
    """Builds matchers on a thread of its own, so that a grammar never delays a step.

    `load_tokenizer` gives the llguidance tokenizer; it is called once, at the first grammar.
    """

    def __init__(self, load_tokenizer: Callable[[], Any], vocab_size: int) -> None:
        self._load_tokenizer = load_tokenizer
        self._vocab_size = vocab_size
        self._tokenizer: Any = None
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")

    def compile(self, grammar: str, output: Sequence[int]) -> "Future[GrammarMask]":
        """The grammar advanced over tokens given out already. The future raises GrammarError."""
        return self._threads.submit(self._compile, grammar, tuple(output))

    def _compile(self, grammar: str, output: Sequence[int]) -> GrammarMask:
        try:
            return self._build(grammar, output)
        except GrammarError:
            raise
        except (
            Exception
        ) as error:  # a tokenizer that cannot be loaded, say: the request fails, not the worker
            log.exception("no grammar can be made")
            raise GrammarError(
                f"the engine cannot make a grammar: {error}", is_request_at_fault=False
            ) from error

    def _build(self, grammar: str, output: Sequence[int]) -> GrammarMask:
        import llguidance

        if self._tokenizer is None:
            self._tokenizer = self._load_tokenizer()
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise _error_of(matcher)
        mask = GrammarMask(matcher, self._vocab_size)
        mask.advance(output)
        return mask

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _error_of(matcher: Any) -> GrammarError:
    """What llguidance says, but for the state of its parser below the first line."""
    message = matcher.get_error().strip().partition("\n")[0]
    out_of_step = "doesn't satisfy the grammar" in message  # all else it complains of is a limit that was met
    return GrammarError(f"the grammar cannot be followed: {message}", is_request_at_fault=not out_of_step)
