"""The events of a streamed chat. They are put together by hand: only what is new goes through a JSON
encoder.
"""

from collections.abc import Iterator

from mortice.serve.api import ChatRequest
from mortice.serve.building import fingerprint
from mortice.serve.json_text import as_json, quoted
from mortice.serve.logprobs import ChatLogprobs, chat_logprobs
from mortice.serve.running import DONE, Run, sse_error
from mortice.serve.tally import usage_of
from mortice.serve.voice import Piece
from mortice.text.tools import CallArguments, CallStart


class ChatEvents:
    """`chat.completion.chunk` events. The first of a choice carries the role, and comes with its first
    token.
    """

    def __init__(self, run: Run, body: ChatRequest) -> None:
        request = run.requests[0]
        options = body.stream_options
        self._run = run
        self._vocabulary = run.edge.text.vocabulary
        self._logprobs = bool(body.logprobs)
        self._token_ids = bool(body.return_token_ids)
        self._reasoning = body.include_reasoning is not False
        self._usage_at_end = options is not None and bool(options.include_usage)
        self._usage_always = options is not None and bool(options.continuous_usage_stats)
        self._begun: set[int] = set()  # indexes whose role was sent
        self._prompt_ids = request.prompt_token_ids if body.return_token_ids else None
        model = request.adapter or run.edge.cluster.model.name
        self._head = (
            f'data: {{"id":{quoted(request.id)},"object":"chat.completion.chunk",'
            f'"created":{int(request.arrival_s)},"model":{quoted(model)},'
            f'"system_fingerprint":"{fingerprint(run.edge)}","choices":['
        )

    def pieces(self, pieces: list[Piece]) -> bytes:
        shown = (part for piece in pieces if self._shows(piece) for part in _parts(piece))
        return "".join([self._event(part) for part in shown]).encode()

    def _shows(self, piece: Piece) -> bool:
        return piece.says_something() or (bool(piece.token_ids) and (self._logprobs or self._token_ids))

    def _event(self, piece: Piece) -> str:
        finish = "null" if piece.finish_reason is None else f'"{piece.finish_reason}"'
        parts = [
            f'{self._head}{{"index":{piece.index},"delta":{{{",".join(self._delta(piece))}}},"logprobs":',
            self._logprobs_of(piece) if self._logprobs else "null",
            f',"finish_reason":{finish}',
        ]
        if piece.stop_reason is not None:
            parts.append(f',"stop_reason":{as_json(piece.stop_reason).decode()}')
        if self._token_ids:
            parts.append(f',"token_ids":{piece.token_ids}')
        version = piece.versions[-1] if piece.versions else 0
        parts.append(f',"weight_version":{version}}}]')
        if self._prompt_ids is not None:
            parts.append(f',"prompt_token_ids":{self._prompt_ids}')
            self._prompt_ids = None
        if self._usage_always:
            parts.append(f',"usage":{as_json(usage_of(self._run.tallies)).decode()}')
        elif self._usage_at_end:
            parts.append(',"usage":null')
        parts.append("}\n\n")
        return "".join(parts)

    def _delta(self, piece: Piece) -> Iterator[str]:
        if piece.index not in self._begun:
            self._begun.add(piece.index)
            yield '"role":"assistant"'
            if not piece.content and not piece.calls:
                yield '"content":""'
        if piece.reasoning and self._reasoning:
            thought = quoted(piece.reasoning)
            yield f'"reasoning":{thought},"reasoning_content":{thought}'
        if piece.content:
            yield f'"content":{quoted(piece.content)}'
        for call in piece.calls:
            yield f'"tool_calls":[{_call(call)}]'

    def _logprobs_of(self, piece: Piece) -> str:
        entries = piece.logprobs[: len(piece.token_ids) - piece.num_hidden]
        return as_json(ChatLogprobs(chat_logprobs(self._vocabulary, entries))).decode()

    async def end(self) -> bytes:
        if not self._usage_at_end:
            return DONE
        usage = as_json(usage_of(self._run.tallies)).decode()
        return f'{self._head}],"usage":{usage}}}\n\n'.encode() + DONE

    async def failed(self, error: BaseException) -> bytes:
        return sse_error(error)


def _parts(piece: Piece) -> list[Piece]:
    """The piece as events can carry it: each of at most one happening of one call, the last with the finish
    reason.
    """
    calls: list[CallStart | CallArguments] = []
    for call in piece.calls:
        before = calls[-1] if calls else None
        if (
            isinstance(call, CallArguments)
            and isinstance(before, CallArguments)
            and before.index == call.index
        ):
            calls[-1] = CallArguments(call.index, before.delta + call.delta)
        else:
            calls.append(call)
    if len(calls) <= 1:
        piece.calls = calls
        return [piece]
    rest = [Piece(piece.index, calls=[call], versions=piece.versions[-1:]) for call in calls[1:]]
    rest[-1].finish_reason, rest[-1].stop_reason = piece.finish_reason, piece.stop_reason
    piece.calls, piece.finish_reason, piece.stop_reason = calls[:1], None, None
    return [piece, *rest]


def _call(call: CallStart | CallArguments) -> str:
    if isinstance(call, CallStart):
        return (
            f'{{"index":{call.index},"id":{quoted(call.id)},"type":"function",'
            f'"function":{{"name":{quoted(call.name)},"arguments":""}}}}'
        )
    return f'{{"index":{call.index},"function":{{"arguments":{quoted(call.delta)}}}}}'
