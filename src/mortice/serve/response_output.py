"""Builds a response's output items from pieces, and tells of it in typed events with sequence numbers."""

import secrets
from typing import Any

import msgspec

from mortice.serve.errors import error_body
from mortice.serve.json_text import as_json
from mortice.serve.logprobs import chat_logprobs
from mortice.serve.running import Run
from mortice.serve.tally import usage_of
from mortice.serve.voice import Piece
from mortice.text.tools import CallArguments, CallStart

Json = dict[str, Any]


class Output:
    """One response as it grows. Items follow each other: what is open ends when something else begins."""

    def __init__(self, run: Run, response: Json, with_logprobs: bool) -> None:
        self.response = response  # the object that clients see, kept up to date
        self._run = run
        self._with_logprobs = with_logprobs
        self._items: list[Json] = response["output"]
        self._open: Json | None = None  # the last item, while it still grows
        self._sequence = 0
        self._events: list[bytes] = []
        self._finish: str | None = None

    # EventWriter

    def pieces(self, pieces: list[Piece]) -> bytes:
        self._begin()
        for piece in pieces:
            self._hear(piece)
        return self._taken()

    async def end(self) -> bytes:
        self._begin()
        self._close_item()
        self.response["usage"] = response_usage(self._run)
        if self._finish == "length":
            self.response["status"] = "incomplete"
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self.response["status"] = "completed"
        self._tell(f"response.{self.response['status']}", response=self.response)
        return self._taken()

    async def failed(self, error: BaseException) -> bytes:
        self._begin()
        detail = error_body(error).error
        self.response["status"] = "failed"
        self.response["error"] = {"code": detail.code or "server_error", "message": detail.message}
        self._tell("response.failed", response=self.response)
        return self._taken()

    def _taken(self) -> bytes:
        data = b"".join(self._events)
        self._events.clear()
        return data

    def _tell(self, kind: str, **fields: Any) -> None:
        event = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        self._events.append(b"event: " + kind.encode() + b"\ndata: " + as_json(event) + b"\n\n")

    def _begin(self) -> None:
        if self._sequence == 0:
            self.response["status"] = "in_progress"
            self._tell("response.created", response=self.response)
            self._tell("response.in_progress", response=self.response)

    def _hear(self, piece: Piece) -> None:
        if piece.reasoning:
            self._text("reasoning", "reasoning_text", piece.reasoning, {})
        if piece.content:
            logprobs: list[Any] = []
            if self._with_logprobs:
                entries = piece.logprobs[: len(piece.token_ids) - piece.num_hidden]
                logprobs = msgspec.to_builtins(chat_logprobs(self._run.edge.text.vocabulary, entries))
            self._text("message", "output_text", piece.content, {"logprobs": logprobs})
        for call in piece.calls:
            if isinstance(call, CallStart):
                self._start_call(call)
            else:
                self._add_arguments(call)
        self._finish = piece.finish_reason or self._finish
        if piece.versions:
            self.response["weight_version"] = piece.versions[-1]

    def _place(self) -> Json:
        return {"output_index": len(self._items) - 1, "item_id": self._items[-1]["id"]}

    def _text(self, kind: str, part_type: str, delta: str, extra: Json) -> None:
        """Add text to the open item, which is a new one if the open one is of another kind."""
        if self._open is None or self._open["type"] != kind:
            self._close_item()
            self._open_text(kind, part_type)
        assert self._open is not None  # opened a line above
        part = self._open["content"][0]
        part["text"] += delta
        if "logprobs" in part:
            part["logprobs"] += extra["logprobs"]
        self._tell(f"response.{part_type}.delta", **self._place(), content_index=0, delta=delta, **extra)

    def _open_text(self, kind: str, part_type: str) -> None:
        item: Json = {"id": _new("msg" if kind == "message" else "rs"), "type": kind, "status": "in_progress"}
        extra: Json = {"role": "assistant"} if kind == "message" else {"summary": []}
        item |= extra
        item["content"] = []
        self._items.append(item)
        self._open = item
        self._tell("response.output_item.added", output_index=len(self._items) - 1, item=item)
        part: Json = {"type": part_type, "text": ""}
        if kind == "message":
            part |= {"annotations": [], "logprobs": []}
        item["content"].append(part)
        self._tell("response.content_part.added", **self._place(), content_index=0, part=part)

    def _start_call(self, call: CallStart) -> None:
        self._close_item()
        item = {
            "id": _new("fc"),
            "type": "function_call",
            "status": "in_progress",
            "call_id": call.id,
            "name": call.name,
            "arguments": "",
        }
        self._items.append(item)
        self._open = item
        self._tell("response.output_item.added", output_index=len(self._items) - 1, item=item)

    def _add_arguments(self, call: CallArguments) -> None:
        self._items[-1]["arguments"] += call.delta
        self._tell("response.function_call_arguments.delta", **self._place(), delta=call.delta)

    def _close_item(self) -> None:
        item, self._open = self._open, None
        if item is None:
            return
        if item["type"] == "function_call":
            item["arguments"] = item["arguments"] or "{}"
            self._tell(
                "response.function_call_arguments.done",
                **self._place(),
                name=item["name"],
                arguments=item["arguments"],
            )
        else:
            part = item["content"][0]
            extra = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
            self._tell(
                f"response.{part['type']}.done", **self._place(), content_index=0, text=part["text"], **extra
            )
            self._tell("response.content_part.done", **self._place(), content_index=0, part=part)
        item["status"] = "incomplete" if self._finish == "length" else "completed"
        self._tell("response.output_item.done", output_index=len(self._items) - 1, item=item)


def response_usage(run: Run) -> Json:
    usage = usage_of(run.tallies)
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.prompt_tokens_details.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.completion_tokens_details.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


def _new(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"
