"""The mailbox between cluster and client, and pieces when they are merged."""

import asyncio

import pytest

from mortice.serve.running import Mailbox, SlowReader
from mortice.serve.voice import Piece
from mortice.specs.errors import EngineError


def piece(index: int, text: str, finish: str | None = None) -> Piece:
    return Piece(
        index, content=text, token_ids=list(text.encode()), versions=[1] * len(text), finish_reason=finish
    )


async def test_what_was_not_taken_is_merged_by_sequence():
    mailbox = Mailbox(100)
    for part in (piece(0, "a"), piece(1, "x"), piece(0, "b"), piece(0, "c", "stop")):
        mailbox.put(part)
    taken = await mailbox.take()
    assert [(p.index, p.content, p.finish_reason) for p in taken] == [(0, "abc", "stop"), (1, "x", None)]
    assert taken[0].token_ids == list(b"abc")
    mailbox.close(None)
    assert await mailbox.take() is None


async def test_what_lies_there_is_given_out_before_the_error():
    mailbox = Mailbox(100)
    mailbox.put(piece(0, "a"))
    mailbox.close(EngineError("gone"))
    assert len(await mailbox.take()) == 1
    with pytest.raises(EngineError):
        await mailbox.take()


async def test_the_first_error_stands():
    mailbox = Mailbox(100)
    mailbox.close(EngineError("first"))
    mailbox.close(None)
    with pytest.raises(EngineError, match="first"):
        await mailbox.take()


async def test_too_much_is_a_slow_reader():
    mailbox = Mailbox(3)
    mailbox.put(piece(0, "abc"))
    with pytest.raises(SlowReader):
        mailbox.put(piece(0, "d"))


async def test_a_wake_gives_an_empty_list():
    mailbox = Mailbox(3)
    taking = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    mailbox.wake()
    assert await taking == []


def test_merging_keeps_count_and_hides_the_stop_token():
    first, last = piece(0, "ab"), piece(0, "c", "stop")
    last.token_ids.append(256)
    last.num_hidden = 1
    first.merge(last)
    assert first.token_ids == [*b"abc", 256]
    assert first.num_hidden == 1
