"""Grammars at work: one llguidance matcher a sequence, compiled off the loop, advanced with every accepted token."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor


class GrammarError(Exception):
    """The grammar cannot be compiled, or the output fell out of step with it."""


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
            raise GrammarError(self._matcher.get_error())
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: logits.shape[-1]]
        logits.masked_fill_(torch.from_numpy(allowed == 0).to(logits.device), -torch.inf)

    def advance(self, token_ids: Sequence[int]) -> None:
        """Follow accepted tokens. Raises GrammarError if they do not fit."""
        for token_id in token_ids:
            if self._matcher.is_stopped():
                return
            if not self._matcher.consume_token(token_id):
                raise GrammarError(f"token {token_id} does not fit the grammar")

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
        import llguidance

        if self._tokenizer is None:
            self._tokenizer = self._load_tokenizer()
        matcher = llguidance.LLMatcher(self._tokenizer, grammar)
        if matcher.is_error():
            raise GrammarError(matcher.get_error())
        mask = GrammarMask(matcher, self._vocab_size)
        mask.advance(output)
        return mask

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
