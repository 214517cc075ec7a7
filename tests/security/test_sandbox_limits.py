"""Guests that take all they can: each limit holds, is named, and the sandbox and its neighbours answer afterwards."""

import asyncio
import os
import resource
import time
from collections.abc import Awaitable, Callable

import pytest

from mortice.sandbox import Sandboxes, SandboxLost
from mortice.sandbox.box import Box

MIB = 1 << 20
Make = Callable[..., Awaitable[Box]]
gvisor_first = pytest.mark.parametrize(
    "backend", ["gvisor", pytest.param("process", marks=pytest.mark.slow)], indirect=True
)
"""The quick form runs on gVisor, and on `process` among the slow tests."""


async def answers(box: object, cell_id: str = "after") -> None:
    result = await asyncio.wait_for(box.run_cell("40 + 2", cell_id=cell_id), 10)  # type: ignore[attr-defined]
    assert result.value == "42"


@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True:\n    if os.fork() == 0:\n        import time; time.sleep(30); os._exit(0)",
        "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(3,), daemon=True).start()",
        "import subprocess\nwhile True: subprocess.Popen(['sleep', '30'])",
    ],
    ids=["fork", "threads", "exec"],
)
async def test_fork_and_thread_bombs_meet_the_process_limit(make: Make, code: str) -> None:
    box = await make(num_processes=24)
    result = await box.run_cell(code, cell_id="bomb", timeout_s=30)
    assert (result.ok, result.failure and result.failure.reason) == (False, "processes"), result
    await answers(box)


@gvisor_first
async def test_a_shell_fork_bomb_ends_with_its_timeout(make: Make, boxes: Sandboxes) -> None:
    neighbour = await make()
    box = await make(num_processes=24)
    result = await box.exec(["bash", "-c", ":(){ :|:& };:; sleep 20"], cell_id="bomb", timeout_s=3)
    assert not result.ok
    await answers(neighbour)
    await answers(box)


async def test_one_greedy_process_gets_an_error_it_can_read(make: Make) -> None:
    box = await make(memory_bytes=192 * MIB)
    result = await box.run_cell("x = bytearray(900 << 20)", cell_id="a")
    assert (result.error and result.error.type, result.failure and result.failure.reason) == (
        "MemoryError",
        "oom",
    )
    await answers(box)


@pytest.mark.parametrize("backend", ["gvisor"], indirect=True)
async def test_a_memory_bomb_of_many_processes_ends_the_sandbox_and_says_so(make: Make) -> None:
    neighbour = await make()
    box = await make(memory_bytes=128 * MIB)
    await box.run_cell("kept = 1", cell_id="before")
    snapshot = await box.snapshot()
    child = "x = bytearray(os.urandom(1) * (50 << 20)); import time; time.sleep(60)"
    bomb = f"import os\nfor _ in range(20):\n    if os.fork() == 0:\n        {child}"
    with pytest.raises(SandboxLost) as caught:
        await box.run_cell(bomb + "\nimport time; time.sleep(30)", cell_id="bomb", timeout_s=40)
    assert (caught.value.reason, caught.value.last_snapshot) == ("oom", snapshot)
    await answers(neighbour)


@pytest.mark.parametrize("backend", ["process"], indirect=True)
async def test_on_the_host_s_kernel_a_memory_bomb_loses_its_children_and_the_sandbox_lives(
    make: Make,
) -> None:
    box = await make(memory_bytes=128 * MIB)
    child = "x = bytearray(os.urandom(1) * (50 << 20)); import time; time.sleep(60)"
    bomb = f"import os\nfor _ in range(8):\n    if os.fork() == 0:\n        {child}"
    await box.run_cell(bomb, cell_id="bomb")
    ended = await box.run_cell("max(os.waitpid(-1, 0)[1] for _ in range(3))", cell_id="wait", timeout_s=20)
    assert ended.value == "9" or not ended.ok, "killed for their memory, or the interpreter was"
    await answers(box)


LOCKED = """
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
kept = []
while True:
    m = mmap.mmap(-1, 8 << 20)
    kept.append(m)
    if libc.mlock(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(m))), ctypes.c_size_t(8 << 20)) != 0:
        m[::4096] = b'x' * 2048
"""
SHARED = """
import os
fds = []
while True:
    fds.append(os.memfd_create('hoard'))
    os.posix_fallocate(fds[-1], 0, 16 << 20)
    os.pwrite(fds[-1], b'x' * (16 << 20), 0)
"""


@pytest.mark.parametrize("code", [LOCKED, SHARED], ids=["mlock", "memfd"])
async def test_memory_that_no_process_seems_to_hold_counts_too(make: Make, code: str) -> None:
    """Locked and anonymous shared memory: it ends in an error that can be read or in a sandbox lost for its memory."""
    neighbour = await make()
    box = await make(memory_bytes=96 * MIB)
    try:
        result = await box.run_cell(code, cell_id="bomb", timeout_s=60)
    except SandboxLost as lost:
        assert lost.reason == "oom"  # noqa: PT017
    else:
        assert not result.ok
        assert result.failure is not None
        assert result.failure.reason in ("oom", "interpreter_exit"), result
        await answers(box)
    await answers(neighbour)


async def test_the_shared_memory_folder_is_bounded(make: Make) -> None:
    box = await make()
    result = await box.exec(
        ["sh", "-c", "cat /dev/zero > /dev/shm/all; stat -c %s /dev/shm/all"], cell_id="a"
    )
    assert int(result.stdout) <= 16 * MIB
    assert "No space left" in result.stderr
    await answers(box)


async def hoard_files(make: Make, count: int) -> None:
    neighbour = await make()
    box = await make(memory_bytes=256 * MIB)
    before = os.statvfs("/")
    code = f"import os\nfor n in range({count}): os.close(os.open(f'/work/{{n}}', os.O_CREAT | os.O_WRONLY))"
    try:
        result = await box.run_cell(code, cell_id="files", timeout_s=600)
    except SandboxLost as lost:
        assert lost.reason == "oom"  # noqa: PT017
    else:
        assert result.ok or (result.failure is not None and result.failure.reason == "disk"), result
        await answers(box)
        assert (await box.status())["ok"]
    after = os.statvfs("/")
    assert before.f_ffree - after.f_ffree < count / 2, "they cost the host inodes"  # others write here too
    await answers(neighbour)


async def test_thousands_of_empty_files_cost_the_host_none(make: Make) -> None:
    await hoard_files(make, 20_000)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_million_empty_files_cost_the_host_none(make: Make) -> None:
    await hoard_files(make, 1_000_000)


@pytest.mark.parametrize("folder", ["/work", "/tmp", "/home/user"])
async def test_full_disks_say_so_and_cost_the_host_nothing(make: Make, folder: str) -> None:
    box = await make(disk_bytes=16 * MIB)
    before = os.statvfs("/")
    code = f"f = open('{folder}/big', 'wb')\nwhile True: f.write(b'x' * (1 << 20))"
    result = await box.run_cell(code, cell_id="fill")
    assert (result.ok, result.failure and result.failure.reason) == (False, "disk")
    after = os.statvfs("/")
    assert (before.f_bfree - after.f_bfree) * before.f_frsize < 512 * MIB  # others write here too
    shell = await box.exec(["sh", "-c", f"cat /dev/zero > {folder}/more"], cell_id="sh")
    assert (shell.ok, shell.failure and shell.failure.reason) == (False, "disk")
    await answers(box)


@gvisor_first
async def test_a_hole_costs_nothing_and_what_is_deleted_or_reserved_still_counts(make: Make) -> None:
    box = await make(disk_bytes=16 * MIB)
    code = """
import errno, os
def full(call):
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno]
os.truncate(os.open('/work/sparse', os.O_CREAT | os.O_RDWR), 1 << 40)
kept = os.open('/work/gone', os.O_CREAT | os.O_RDWR)
os.write(kept, b'x' * (12 << 20))
os.unlink('/work/gone')
other = os.open('/work/other', os.O_CREAT | os.O_RDWR)
seen = [full(lambda: [os.write(other, b'x' * (1 << 20)) for _ in range(8)])]
os.unlink('/work/other'); os.close(other); os.close(kept)
fd = os.open('/work/reserved', os.O_CREAT | os.O_RDWR)
seen.append(full(lambda: os.posix_fallocate(fd, 0, 64 << 20)))
os.unlink('/work/reserved'); os.close(fd)
seen.append(full(lambda: open('/work/after', 'wb').write(b'x' * (8 << 20))))
seen
"""
    result = await box.run_cell(code, cell_id="a", timeout_s=60)
    assert result.value == "['ENOSPC', 'ENOSPC', None]", result
    await answers(box)


async def test_the_root_file_system_cannot_be_written(make: Make) -> None:
    box = await make()
    result = await box.exec(
        ["sh", "-c", "for d in / /usr /etc /var /opt /root; do touch $d/x && echo $d; done"], cell_id="a"
    )
    assert result.stdout == ""


@gvisor_first
async def test_endless_output_is_cut_and_costs_bounded_memory(make: Make) -> None:
    box = await make(output_bytes=8 * MIB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = await box.exec(["sh", "-c", "yes"], cell_id="yes", output_cap=64 * 1024, timeout_s=30)
    assert (result.ok, result.failure and result.failure.reason) == (False, "output")
    assert len(result.stdout) < 80_000
    assert "bytes omitted" in result.stdout
    one_line = await box.run_cell(
        "import sys\nwhile True: sys.stdout.write('x' * 65536)", cell_id="line", timeout_s=30
    )
    assert one_line.failure is not None
    assert one_line.failure.reason == "output"
    seen = 0

    def count(_: str, data: bytes) -> None:
        nonlocal seen
        seen += len(data)

    streamed = await box.exec(["sh", "-c", "yes"], cell_id="s", timeout_s=30, on_output=count)
    assert streamed.failure is not None
    assert 8 * MIB <= seen <= 10 * MIB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
    await answers(box)


@gvisor_first
async def test_time_is_up_for_cells_and_commands_that_will_not_end(make: Make) -> None:
    box = await make()
    await box.run_cell("kept = 5", cell_id="k")
    began = time.monotonic()
    result = await box.run_cell("while True: pass", cell_id="a", timeout_s=0.5)
    assert (result.failure and result.failure.reason) == "timeout"
    assert (await box.run_cell("kept", cell_id="b")).value == "5", "an interrupted cell loses no variables"
    stubborn = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: time.sleep(1)"
    result = await box.run_cell(stubborn, cell_id="c", timeout_s=0.5)
    assert (result.failure and result.failure.reason) == "timeout"
    result = await box.exec(
        ["sh", "-c", "trap '' TERM INT; while :; do sleep 1; done"], cell_id="d", timeout_s=0.5
    )
    assert (result.failure and result.failure.reason) == "timeout"
    assert time.monotonic() - began < 30
    await answers(box)


@gvisor_first
async def test_what_a_child_says_after_its_command_has_ended_disturbs_nobody(make: Make) -> None:
    box = await make()
    late = "import os, time\nif os.fork(): os._exit(0)\nos.setsid(); time.sleep(0.3)\n"
    late += "open('/work/late', 'w').close()\nwhile True: os.write(1, b'late' * 1000)"
    ended = await box.exec(["python3", "-c", late], cell_id="a", timeout_s=20)
    assert ended.exit_code == 0
    seen = await box.exec(["sh", "-c", "until [ -e /work/late ]; do sleep 0.1; done; echo own"], cell_id="b")
    assert seen.stdout == "own\n"
    await answers(box)


async def test_odd_bytes_come_through_as_text(make: Make) -> None:
    box = await make()
    result = await box.exec(
        ["python3", "-c", r"import sys; sys.stdout.buffer.write(b'\xff\x00\x1b[31m\n')"], cell_id="a"
    )
    assert result.stdout == "\ufffd\x00\x1b[31m\n"
    assert result.stdout_bytes == 8
