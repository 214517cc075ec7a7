"""POST /generate: token ids in, token ids out. No text on the way, so a trainer sees what the model saw."""

from msgspec import UNSET

from mortice.serve.answers import Generated, GeneratedSequence, GeneratedToken
from mortice.serve.api import GenerateRequest
from mortice.serve.building import (
    check_n,
    check_prompt_ids,
    engine_request,
    now_s,
    output_room,
    sampling_params,
)
from mortice.serve.edge import Edge, new_id
from mortice.serve.json_text import as_json
from mortice.serve.link import Link
from mortice.serve.running import DONE, Run, collect, sse_error, stream
from mortice.serve.tally import usage_of
from mortice.serve.voice import Piece, VoiceSettings
from mortice.specs.request import TokenLogprob


async def generate(edge: Edge, link: Link, body: GenerateRequest) -> None:
    arrival_s = now_s()
    adapter = edge.adapter_for(body.model)
    n = check_n(edge, body.n)
    with edge.admitted(1):
        prompt = check_prompt_ids(edge, body.token_ids, "token_ids")
        room = output_room(edge, prompt, body.max_tokens, place="token_ids", bound="max_tokens")
        sampling = sampling_params(
            edge, body, max_tokens=room, logprobs=body.logprobs, prompt_logprobs=body.prompt_logprobs
        )
        request = engine_request(
            edge,
            link,
            body,
            request_id=new_id("gen", body.request_id),
            prompt=prompt,
            sampling=sampling,
            n=n,
            adapter=adapter,
            arrival_s=arrival_s,
        )
        # No text is wanted, so nothing may end a sequence but its tokens.
        settings = VoiceSettings(edge.text, include_stop=True)
        run = Run(edge, [request], settings, "generate", shows_abort=True)
        writer = _Writer(run, body)
        if body.stream:
            await stream(link, run, writer)
        else:
            choices = await collect(run)
            await link.json(writer.answer(choices))


class _Writer:
    """Answers and events; an event has the shape of the answer with only what is new."""

    def __init__(self, run: Run, body: GenerateRequest) -> None:
        self._run = run
        self._body = body
        self._usage = body.stream_options is not None and bool(body.stream_options.include_usage)

    def answer(self, pieces: list[Piece]) -> Generated:
        request = self._run.requests[0]
        return Generated(
            id=request.id,
            created=int(request.arrival_s),
            model=request.adapter or self._run.edge.cluster.model.name,
            sequences=[self._sequence(piece) for piece in pieces],
            usage=usage_of(self._run.tallies),
        )

    def _sequence(self, piece: Piece) -> GeneratedSequence:
        wanted = piece.prompt_logprobs
        return GeneratedSequence(
            index=piece.index,
            token_ids=piece.token_ids,
            weight_versions=piece.versions,
            finish_reason=piece.finish_reason,
            stop_token_id=piece.stop_reason if isinstance(piece.stop_reason, int) else None,
            logprobs=UNSET if self._body.logprobs is None else [_token(entry) for entry in piece.logprobs],
            prompt_logprobs=UNSET if wanted is None else [None if e is None else _token(e) for e in wanted],
        )

    def pieces(self, pieces: list[Piece]) -> bytes:
        return b"data: " + as_json(self.answer(pieces)) + b"\n\n"

    async def end(self) -> bytes:
        return (self.pieces([]) if self._usage else b"") + DONE

    async def failed(self, error: BaseException) -> bytes:
        return sse_error(error)


def _token(entry: TokenLogprob) -> GeneratedToken:
    return GeneratedToken(
        token_id=entry.token_id, logprob=max(entry.logprob, -9999.0), rank=entry.rank, top=entry.top
    )
