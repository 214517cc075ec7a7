"""The text worker: a process that tokenises, renders templates and compiles grammars, and may be killed at
any time.

Run as `python -m mortice.text.worker MODEL LANE LIMIT_S MEMORY_BYTES` by the service, which owns its pipes.
It answers one call after the other. Two things end it: the end of its input, and a call that outlasts its
service by far.
"""

import os
import resource
import signal
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

from mortice.specs.errors import RequestError
from mortice.text.calls import FRAME, Call, Done, EncodeCall, Failed, GrammarCall, Ready, RenderCall, Reply
from mortice.text.grammar import check_grammar
from mortice.text.load import TextModel, load_text_model
from mortice.text.template import render_chat


def main() -> None:
    path, lane, limit_s, memory_bytes = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the service decides
    calls = sys.stdin.buffer
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand between the frames
    try:
        model = load_text_model(path)
        if lane == "grammar":
            model.llguidance_tokenizer()
    except RequestError as error:
        _send(replies, Failed(error.message, error.param, error.code))
        return
    _limit_memory(int(memory_bytes))
    _send(replies, _ready(model))
    decoder = msgspec.msgpack.Decoder(Call)
    while (body := _receive(calls)) is not None:
        # If the service died it cannot kill us: then the alarm's default action does, even within foreign
        # code.
        signal.setitimer(signal.ITIMER_REAL, 2 * float(limit_s) + 1)
        reply = _answer(model, decoder.decode(body))
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(replies, reply)


def _answer(model: TextModel, call: Call) -> Reply:
    try:
        if isinstance(call, EncodeCall):
            return Done([model.encode(text, call.add_special_tokens) for text in call.texts])
        if isinstance(call, RenderCall):
            return Done([model.encode(render_chat(model, call.chat), add_special_tokens=False)])
        return Done(grammar=check_grammar(call.request, model.llguidance_tokenizer(), model.grammar_tags))
    except RequestError as error:
        return Failed(error.message, error.param, error.code)
    except MemoryError:
        return Failed("it takes more memory than one request may use", code="text_too_complex")
    except (
        Exception
    ) as error:  # a stranger's input must end its own request at most: the message says what it met
        what = "grammar" if isinstance(call, GrammarCall) else "text"
        return Failed(
            f"the {what} cannot be processed: {type(error).__name__}: {error}", code=f"{what}_failed"
        )


def _ready(model: TextModel) -> Ready:
    return Ready(
        token_bytes=model.vocabulary.token_bytes,
        special_ids=sorted(model.special_ids),
        lead_space=model.vocabulary.lead_space,
        special_texts=model.special_texts,
        eos_token_ids=model.eos_token_ids,
        chat_template=model.chat_template,
        tool_template=model.tool_template,
    )


def _limit_memory(extra_bytes: int) -> None:
    """Let the process grow by so many bytes of address space; where the system does not count it, no limit is
    set."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + extra_bytes, used + extra_bytes))


def _receive(calls: BinaryIO) -> bytes | None:
    head = calls.read(FRAME.size)
    return calls.read(FRAME.unpack(head)[0]) if len(head) == FRAME.size else None


def _send(replies: BinaryIO, reply: Reply) -> None:
    body = msgspec.msgpack.encode(reply)
    replies.write(FRAME.pack(len(body)) + body)
    replies.flush()


if __name__ == "__main__":
    main()
