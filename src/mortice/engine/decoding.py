"""What decoding one sequence has to remember, and when it ends."""

from dataclasses import dataclass, field

from mortice.engine.guided import GrammarMask
from mortice.engine.sampler import SamplerState
from mortice.engine.speculate import DraftLength
from mortice.sched.sequence import Sequence
from mortice.specs.request import FinishReason, TokenLogprob


@dataclass(slots=True)
class Decoding:
    sequence: Sequence
    sampler: SamplerState
    eos_token_ids: frozenset[int]
    max_context: int
    draft_length: DraftLength | None = None
    is_announced: bool = False  # a delta of this sequence has gone out
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    error: str | None = None

    @property
    def grammar(self) -> GrammarMask | None:
        return self.sampler.grammar  # type: ignore[return-value]  # the engine puts nothing else there

    def accept(self, token_id: int) -> None:
        """The sequence goes on with this token, or ends with it. Raises GrammarError if the grammar disagrees."""
        sequence, params = self.sequence, self.sampler.params
        sequence.token_ids.append(token_id)
        is_eos = token_id in self.eos_token_ids
        if token_id in params.stop_token_ids or (is_eos and not params.ignore_eos):
            self.finish_reason, self.stop_token_id = "stop", token_id
            return
        if self.grammar is not None:
            self.grammar.advance([token_id])
            if self.grammar.is_complete:
                self.finish_reason = "stop"
                return
        if sequence.num_output >= params.max_tokens or len(sequence.token_ids) >= self.max_context:
            self.finish_reason = "length"
