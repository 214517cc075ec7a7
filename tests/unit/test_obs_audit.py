"""The audit chain: nothing is lost between processes, and every alteration shows."""

import asyncio
import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from mortice.obs.audit import AuditLog
from mortice.obs.audit_keys import PublicKey
from mortice.obs.audit_verify import records, verify


def fill(folder: Path, count: int = 50) -> None:
    with AuditLog(folder) as log:
        for i in range(count):
            log.append("exec", chain="b1", argv=["echo", str(i)])
            log.append("note", chain="b2", number=i)


def test_what_was_written_verifies_and_reads_back(tmp_path: Path) -> None:
    fill(tmp_path)
    report = verify(tmp_path)
    assert report.ok, report
    assert [r["argv"][1] for r in records(tmp_path, "b1")] == [str(i) for i in range(50)]
    assert [r["seq"] for r in records(tmp_path, "b1")] == list(range(50))


@pytest.mark.parametrize("seed", range(4))
def test_any_edited_byte_shows(tmp_path: Path, seed: int) -> None:
    fill(tmp_path)
    path = tmp_path / "b1.jsonl"
    whole = path.read_bytes()
    draw = random.Random(seed)
    for _ in range(60):
        at = draw.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << draw.randrange(7))]) + whole[at + 1 :])
        assert not verify(tmp_path).ok, f"seed {seed}: byte {at} was changed unseen"
    path.write_bytes(whole)
    assert verify(tmp_path).ok


def test_taken_out_swapped_and_cut_lines_show(tmp_path: Path) -> None:
    fill(tmp_path)
    path = tmp_path / "b1.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for altered in (
        lines[:10] + lines[11:],
        [*lines[:10], lines[11], lines[10], *lines[12:]],
        lines[:-1],
        lines[:-20],
        lines[5:],
        [],
    ):
        path.write_bytes(b"".join(altered))
        assert not verify(tmp_path).ok
    path.unlink()
    assert not verify(tmp_path).ok


def test_a_forged_tail_fails_the_spine(tmp_path: Path) -> None:
    """Someone who rewrites the end with right links but without the key is caught by the heads in the spine."""
    fill(tmp_path)
    path = tmp_path / "b1.jsonl"
    lines = path.read_bytes().splitlines()
    last = json.loads(lines[-1]) | {"argv": ["echo", "forged"]}
    lines[-1] = json.dumps(last, sort_keys=True, separators=(",", ":")).encode()
    path.write_bytes(b"\n".join(lines) + b"\n")
    report = verify(tmp_path)
    assert not report.ok
    assert any("heads in the spine" in p for c in report.chains for p in c.problems)


def test_a_log_signed_anew_shows_to_whoever_kept_the_public_key(tmp_path: Path) -> None:
    """All of a log can be written again with right links by someone who makes a key; not with the key that was."""
    fill(tmp_path / "real")
    kept = PublicKey((tmp_path / "real" / "signing.pub").read_text())
    fill(tmp_path / "forged")
    assert verify(tmp_path / "real", key=kept).ok
    assert verify(tmp_path / "forged").ok
    spine = verify(tmp_path / "forged", key=kept).chains[-1]
    assert not spine.ok
    assert "the signature over b1 is wrong" in spine.problems[0]


def test_the_private_key_is_the_host_s_alone_and_a_missing_public_one_is_no_free_pass(tmp_path: Path) -> None:
    fill(tmp_path)
    assert (tmp_path / "signing.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "signing.pub").unlink()
    assert not verify(tmp_path).ok
    fill(tmp_path, 1)  # the next writer puts it back
    assert verify(tmp_path).ok


def test_heads_of_the_format_before_are_named_with_the_remedy(tmp_path: Path) -> None:
    fill(tmp_path)
    spine = tmp_path / "spine.jsonl"
    lines = [json.loads(line) for line in spine.read_text().splitlines()]
    for line in lines:
        line["signature"] = "ab" * 32  # HMAC-SHA256
    previous = "0" * 64
    out = b""
    for line in lines:
        line["prev"] = previous
        text = json.dumps(line, sort_keys=True, separators=(",", ":")).encode()
        previous = hashlib.sha256(text).hexdigest()
        out += text + b"\n"
    spine.write_bytes(out)
    report = verify(tmp_path)
    assert not report.ok
    assert len(report.chains[-1].problems) == 1
    assert "the format of before Ed25519" in report.chains[-1].problems[0]
    assert f"move {tmp_path} aside" in report.chains[-1].problems[0]


def test_a_spine_cut_before_its_anchor_shows(tmp_path: Path) -> None:
    fill(tmp_path)
    spine = verify(tmp_path).chains[-1]
    anchor = (spine.num_records - 1, spine.head)
    assert verify(tmp_path, anchor=anchor).ok
    path = tmp_path / "spine.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert verify(tmp_path).ok
    assert not verify(tmp_path, anchor=anchor).ok


def test_a_torn_last_line_is_cut_and_told(tmp_path: Path) -> None:
    fill(tmp_path)
    with (tmp_path / "b1.jsonl").open("ab") as file:
        file.write(b'{"kind":"half a rec')
    fill(tmp_path, 3)
    report = verify(tmp_path)
    assert report.ok, report
    assert report.chains[0].num_recovered == 1
    assert len(list(records(tmp_path, "b1"))) == 54


def test_several_processes_append_to_one_chain(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from mortice.obs.audit import AuditLog\n"
        "with AuditLog(pathlib.Path(sys.argv[1])) as log:\n"
        "    for i in range(300): log.append('n', chain='shared', who=sys.argv[2], i=i)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(w)]) for w in range(3)]
    assert [w.wait(timeout=60) for w in writers] == [0, 0, 0]
    assert verify(tmp_path).ok
    found = list(records(tmp_path, "shared"))
    for who in "012":
        assert [r["i"] for r in found if r["who"] == who] == list(range(300))


def test_secrets_are_hidden_but_can_be_matched(tmp_path: Path) -> None:
    with AuditLog(tmp_path) as log:
        log.append(
            "exec",
            env={"API_KEY": "hunter2hunter2", "LANG": "C"},
            argv=["curl", "-H", "x: Bearer abcdefgh12345"],
        )
        log.append("exec", env={"api_key": "hunter2hunter2"}, argv=[])
    first, second = records(tmp_path, "host")
    text = (tmp_path / "host.jsonl").read_text()
    assert "hunter2" not in text
    assert "abcdefgh" not in text
    assert first["env"]["LANG"] == "C"
    assert first["env"]["API_KEY"] == second["env"]["api_key"]


def test_long_text_is_kept_as_digest_and_any_text_can_be_written(tmp_path: Path) -> None:
    with AuditLog(tmp_path) as log:
        log.append("cell", code="x" * 100_000, odd="a\ud800b\x1b[31m", raw=b"\xff\x00", big=1 << 80)
    (record,) = records(tmp_path, "host")
    assert record["code"]["chars"] == 100_000
    assert verify(tmp_path).ok


def test_a_chain_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    with AuditLog(tmp_path) as log, pytest.raises(ValueError, match="no chain"):
        log.append("x", chain="../evil")


async def test_a_waiter_that_is_cancelled_takes_nobody_else_with_it(tmp_path: Path) -> None:
    with AuditLog(tmp_path) as log:
        waiting = asyncio.wrap_future(log.append("first"))
        waiting.cancel()
        assert await asyncio.wrap_future(log.append("second")) == (1, log.head("host")[1])
    assert verify(tmp_path).ok
