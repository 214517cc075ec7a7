"""POST /v1/completions: one or many prompts, as text or token ids, each with n answers."""

from typing import cast

import msgspec
from msgspec import UNSET

from mortice.serve.answers import Completion, CompletionChoice
from mortice.serve.api import CompletionRequest
from mortice.serve.building import (
    bad_words,
    check_n,
    check_prompt_ids,
    compile_grammar,
    engine_request,
    fingerprint,
    now_s,
    output_room,
    sampling_params,
)
from mortice.serve.edge import Edge, new_id
from mortice.serve.json_text import as_json
from mortice.serve.link import Link
from mortice.serve.logprobs import CompletionLogprobs, completion_logprobs, prompt_logprobs
from mortice.serve.running import DONE, Run, collect, sse_error, stream
from mortice.serve.tally import Usage, usage_of
from mortice.serve.voice import Piece, VoiceSettings
from mortice.specs.errors import RequestError
from mortice.specs.request import Request, TokenLogprob
from mortice.text.calls import GrammarInput
from mortice.text.stream import check_stop

MAX_PROMPTS = 256


async def completions(edge: Edge, link: Link, body: CompletionRequest) -> None:
    arrival_s = now_s()
    adapter = edge.adapter_for(body.model)
    n = check_n(edge, body.n)
    given = _split(body.prompt)
    stop = check_stop(body.stop)
    if body.max_tokens == 0 and not body.echo:
        raise RequestError("max_tokens 0 asks for nothing, unless echo is true", param="max_tokens")
    if body.prompt_logprobs is not None and body.stream and not body.echo:
        raise RequestError("prompt_logprobs cannot be streamed without echo", param="prompt_logprobs")
    with edge.admitted(len(given)):
        prompts = await _prompts(edge, body, given)
        grammar = await compile_grammar(edge, _grammar_input(body))
        words = await bad_words(edge, body.bad_words)
        answer_id = new_id("cmpl", body.request_id)
        requests = []
        for number, prompt in enumerate(prompts):
            room = output_room(edge, prompt, body.max_tokens or None, place="prompt", bound="max_tokens")
            sampling = sampling_params(
                edge,
                body,
                max_tokens=1 if body.max_tokens == 0 else room,
                logprobs=body.logprobs,
                prompt_logprobs=body.logprobs
                if body.echo and body.logprobs is not None
                else body.prompt_logprobs,
                grammar=grammar,
                bad_words=words,
            )
            requests.append(
                engine_request(
                    edge,
                    link,
                    body,
                    request_id=answer_id if len(prompts) == 1 else f"{answer_id}-{number}",
                    prompt=prompt,
                    sampling=sampling,
                    n=n,
                    adapter=adapter,
                    arrival_s=arrival_s,
                )
            )
        settings = VoiceSettings(
            edge.text,
            stop=stop,
            include_stop=bool(body.include_stop_str_in_output),
            skip_special_tokens=body.skip_special_tokens is not False,
        )
        run = Run(edge, requests, settings, "text_completion")
        writer = _Writer(run, body, answer_id)
        if body.stream:
            await stream(link, run, writer)
        else:
            await link.json(writer.answer(await collect(run)))


def _split(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """The prompts of a request. Raises RequestError where kinds are mixed, or there is nothing."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise RequestError("prompt is empty", param="prompt")
    kinds = {type(entry) for entry in prompt}
    if len(kinds) > 1:
        raise RequestError("prompt must be text, texts, token ids, or lists of token ids", param="prompt")
    if kinds == {int}:
        return [prompt]  # type: ignore[list-item]  # all are ints, as was just seen
    if len(prompt) > MAX_PROMPTS:
        raise RequestError(f"at most {MAX_PROMPTS} prompts, not {len(prompt)}", param="prompt")
    return prompt  # type: ignore[return-value]  # all are strings, or all are lists


async def _prompts(edge: Edge, body: CompletionRequest, given: list[str | list[int]]) -> list[list[int]]:
    texts = [prompt for prompt in given if isinstance(prompt, str)]
    special = body.add_special_tokens is not False
    encoded = await edge.text.encode_many(texts, add_special_tokens=special) if texts else given
    return [check_prompt_ids(edge, ids, "prompt") for ids in cast("list[list[int]]", encoded)]


def _grammar_input(body: CompletionRequest) -> GrammarInput:
    form = body.response_format
    return GrammarInput(
        response_format=None if form is None or form.type == "text" else msgspec.to_builtins(form),
        guided_json=body.guided_json,
        guided_regex=body.guided_regex,
        guided_choice=body.guided_choice,
        guided_grammar=body.guided_grammar,
        structured_outputs=body.structured_outputs,
    )


class _Writer:
    """Answers and events; an event has the shape of the answer, its choices only what is new."""

    def __init__(self, run: Run, body: CompletionRequest, answer_id: str) -> None:
        self._run = run
        self._edge = run.edge
        self._body = body
        self._id = answer_id
        self._echo = bool(body.echo)
        self._score_only = body.max_tokens == 0
        options = body.stream_options
        self._usage_at_end = options is not None and bool(options.include_usage)
        self._usage_always = options is not None and bool(options.continuous_usage_stats)
        self._offsets: dict[int, int] = {}  # index -> characters of text so far

    def answer(self, pieces: list[Piece]) -> Completion:
        return Completion(
            id=self._id,
            created=int(self._run.requests[0].arrival_s),
            model=self._run.requests[0].adapter or self._edge.cluster.model.name,
            system_fingerprint=fingerprint(self._edge),
            choices=[self._choice(piece) for piece in pieces],
            usage=self._usage(),
        )

    def _usage(self) -> Usage:
        usage = usage_of(self._run.tallies)
        if not self._score_only:
            return usage
        return msgspec.structs.replace(usage, completion_tokens=0, total_tokens=usage.prompt_tokens)

    def _choice(self, piece: Piece) -> CompletionChoice:
        request = self._request(piece)
        first = piece.index not in self._offsets
        text = "" if self._score_only else piece.content
        if first and self._echo:
            text = self._edge.text.vocabulary.decode(request.prompt_token_ids) + text
        logprobs = self._logprobs(piece, request, first) if self._body.logprobs is not None else None
        self._offsets[piece.index] = self._offsets.get(piece.index, 0) + len(text)
        ids = self._body.return_token_ids
        wanted = piece.prompt_logprobs if self._body.prompt_logprobs is not None else None
        shown = prompt_logprobs(self._edge.text.vocabulary, wanted)
        finish = "length" if self._score_only and piece.finish_reason else piece.finish_reason
        return CompletionChoice(
            index=piece.index,
            text=text,
            logprobs=logprobs,
            finish_reason=finish,
            stop_reason=piece.stop_reason,
            weight_version=piece.versions[-1] if piece.versions else 0,
            token_ids=([] if self._score_only else piece.token_ids) if ids else UNSET,
            prompt_token_ids=request.prompt_token_ids if ids and first else UNSET,
            prompt_logprobs=UNSET if shown is None else shown,
        )

    def _request(self, piece: Piece) -> Request:
        requests = self._run.requests
        return requests[piece.index // requests[0].n]

    def _logprobs(self, piece: Piece, request: Request, first: bool) -> CompletionLogprobs:
        token_ids = piece.token_ids[: len(piece.token_ids) - piece.num_hidden]
        entries: list[TokenLogprob | None] = list(piece.logprobs[: len(token_ids)])
        if self._score_only:
            token_ids, entries = [], []
        if first and self._echo:
            token_ids = request.prompt_token_ids + token_ids
            entries = (piece.prompt_logprobs or [None] * len(request.prompt_token_ids)) + entries
        offset = self._offsets.get(piece.index, 0)
        return completion_logprobs(self._edge.text.vocabulary, entries, token_ids, offset)

    def pieces(self, pieces: list[Piece]) -> bytes:
        events = []
        for piece in pieces:
            first = self._echo and piece.index not in self._offsets
            if (
                first
                or piece.says_something()
                or self._body.logprobs is not None
                or self._body.return_token_ids
            ):
                events.append(self._event([piece], self._usage_always))
        return b"".join(events)

    def _event(self, pieces: list[Piece], usage: bool) -> bytes:
        chunk = self.answer(pieces)
        if not usage:
            chunk = msgspec.structs.replace(chunk, usage=UNSET)
        return b"data: " + as_json(chunk) + b"\n\n"

    async def end(self) -> bytes:
        return (self._event([], True) if self._usage_at_end else b"") + DONE

    async def failed(self, error: BaseException) -> bytes:
        return sse_error(error)
