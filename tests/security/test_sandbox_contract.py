"""What a caller may rely on, tried on the back end that is the default here."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from mortice.obs.audit_verify import records, verify
from mortice.sandbox import (
    BackendUnavailable,
    GuestFileError,
    NotSupported,
    SandboxBusy,
    Sandboxes,
    SandboxSpec,
    Strength,
)
from mortice.sandbox.box import Box

Make = Callable[..., Awaitable[Box]]
gvisor_first = pytest.mark.parametrize(
    "backend", ["gvisor", pytest.param("process", marks=pytest.mark.slow)], indirect=True
)
"""The quick form runs on gVisor, and on `process` among the slow tests."""


SLOW = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(params=["gvisor", "process", pytest.param("microvm", marks=SLOW)])
def backend(request: pytest.FixtureRequest) -> str:
    """One contract, every wall that has a machine behind it."""
    return str(request.param)


saves = pytest.mark.parametrize("backend", ["gvisor", pytest.param("microvm", marks=SLOW)], indirect=True)
"""What only machines can do that can be saved while they run."""


async def test_variables_live_between_cells_and_the_last_expression_is_the_value(make: Make) -> None:
    box = await make()
    first = await box.run_cell("import math\nx = 6", cell_id="a")
    second = await box.run_cell("print('hi'); x * 7", cell_id="b")
    assert (first.ok, first.value, second.value, second.stdout) == (True, None, "42", "hi\n")
    assert second.strength is box.backend.strength is not Strength.WASM


async def test_an_exception_is_told_with_its_own_lines_only(make: Make) -> None:
    box = await make()
    result = await box.run_cell("def f(d):\n    return d['k']\nf({})", cell_id="a")
    assert not result.ok
    assert result.error is not None
    assert result.error.type == "KeyError"
    assert "return d['k']" in result.error.traceback
    assert "interpreter" not in result.error.traceback


async def test_one_id_runs_once(make: Make) -> None:
    box = await make()
    await box.run_cell("n = 0", cell_id="a")
    first = await box.run_cell("n += 1\nn", cell_id="b")
    again = await box.run_cell("n += 1\nn", cell_id="b")
    assert (first.value, first.replayed, again.value, again.replayed) == ("1", False, "1", True)
    one = await box.exec(["sh", "-c", "echo x >> /work/log"], cell_id="c")
    two = await box.exec(["sh", "-c", "echo x >> /work/log"], cell_id="c")
    assert (one.replayed, two.replayed, await box.read("/work/log")) == (False, True, b"x\n")


async def test_commands_stream_take_input_and_signals(make: Make) -> None:
    box = await make()
    seen: list[tuple[str, bytes]] = []
    first = asyncio.Event()

    def watch(stream: str, data: bytes) -> None:
        seen.append((stream, data))
        first.set()

    running = asyncio.create_task(
        box.exec(
            ["sh", "-c", "read a; echo got $a; read b; echo $b >&2"], cell_id="s", stdin=b"", on_output=watch
        )
    )
    await asyncio.sleep(0.1)
    await box.send_stdin("s", b"one\n")
    await asyncio.wait_for(first.wait(), 10)
    assert seen == [("stdout", b"got one\n")]
    await box.send_stdin("s", b"two\n", close=True)
    result = await running
    assert (result.exit_code, result.stdout, result.stderr) == (0, "got one\n", "two\n")

    sleeping = asyncio.create_task(box.exec(["sleep", "60"], cell_id="t"))
    await asyncio.sleep(0.2)
    await box.signal("t", "TERM")
    ended = await asyncio.wait_for(sleeping, 10)
    assert (ended.ok, ended.exit_code, ended.failure and ended.failure.reason) == (False, -15, "signal")


async def test_a_command_that_is_not_there_and_a_folder_that_is_not(make: Make) -> None:
    box = await make()
    gone = await box.exec(["no-such-program"], cell_id="a")
    assert (gone.exit_code, gone.failure and gone.failure.reason) == (127, "not_found")
    nowhere = await box.exec(["true"], cell_id="b", cwd="/nowhere")
    assert not nowhere.ok
    assert "cwd" in nowhere.stderr
    env = await box.exec(["sh", "-c", "echo $HOME $WHO; id -u; pwd"], cell_id="c", env={"WHO": "me"})
    assert env.stdout == "/home/user me\n1000\n/work\n"


async def test_files_in_and_out(make: Make) -> None:
    box = await make()
    for size in (0, 10, 300_000, 5_000_000):
        data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        await box.write(f"/work/deep/er/{size}", data)
        assert await box.read(f"/work/deep/er/{size}") == data
    for path, code in (
        ("/work/none", "ENOENT"),
        ("/etc/shadow", "EACCES"),
        ("/work", "EISDIR"),
        ("rel", "EINVAL"),
    ):
        with pytest.raises(GuestFileError) as caught:
            await box.read(path)
        assert caught.value.code == code, path
    with pytest.raises(GuestFileError) as caught:
        await box.write("/usr/bin/x", b"no")
    assert caught.value.code in ("EROFS", "EACCES")
    with pytest.raises(GuestFileError) as caught:
        await box.read("/work/deep/er/5000000", max_bytes=1000)
    assert caught.value.code == "EFBIG"


@saves
async def test_a_snapshot_brings_memory_processes_and_files_back(make: Make, boxes: Sandboxes) -> None:
    box = await make("box")
    await box.run_cell("data = list(range(1000)); open('/work/f', 'w').write('old')", cell_id="a")
    await box.exec(["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo started"], cell_id="b")
    snapshot = await box.snapshot(epoch=3)
    await box.run_cell("data = None; open('/work/f', 'w').write('new')", cell_id="c")
    await box.destroy()
    again = await boxes.restore(snapshot)
    assert (await again.run_cell("sum(data), open('/work/f').read()", cell_id="d")).value == "(499500, 'old')"
    assert (await again.run_cell("data = None", cell_id="a")).replayed, "ids travel in the snapshot"
    assert "sleep" in (await again.exec(["sh", "-c", "cat /proc/*/comm"], cell_id="e")).stdout
    assert boxes.snapshots.manifest(snapshot).epoch == 3


@pytest.mark.parametrize("backend", ["gvisor"], indirect=True)
async def test_stopped_processes_threads_and_half_written_files_are_saved_as_they_are(
    make: Make, boxes: Sandboxes
) -> None:
    box = await make(num_processes=64)
    code = """
import os, signal, subprocess, threading
stopped = subprocess.Popen(['sleep', '1000'])
stopped.send_signal(signal.SIGSTOP)
os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)
event = threading.Event()
threads = [threading.Thread(target=event.wait, daemon=True) for _ in range(40)]
for thread in threads: thread.start()
half = open('/work/half', 'w', buffering=1 << 20)
half.write('not yet flushed')
"""
    assert (await box.run_cell(code, cell_id="a")).ok
    clone = await boxes.restore(await box.snapshot())
    look = """
state = open(f'/proc/{stopped.pid}/stat').read().rsplit(') ', 1)[1][0]
alive = sum(t.is_alive() for t in threads)
event.set(); half.close()
for thread in threads: thread.join()
stopped.send_signal(signal.SIGCONT); stopped.terminate()
(state, alive, open('/work/half').read(), stopped.wait())
"""
    for each in (clone, box):
        result = await each.run_cell(look, cell_id="b", timeout_s=30)
        assert result.value == "('T', 40, 'not yet flushed', -15)", result


@saves
async def test_forks_share_the_past_and_nothing_after(make: Make) -> None:
    box = await make()
    await box.run_cell("import random, uuid, os, socket, tempfile; random.seed(1); x = [1]", cell_id="a")
    forks = await box.fork(3)
    assert [o.error for o in forks] == [None] * 3
    clones = [o.box for o in forks if o.box is not None]
    draws = []
    for n, one in enumerate([box, *clones]):
        names = "socket.gethostname(), open('/etc/machine-id').read()"
        code = f"x.append({n}); (x, random.random(), str(uuid.uuid4()), {names})"
        result = await one.run_cell(code, cell_id="b")
        draws.append(eval(result.value or ""))
    assert [d[0] for d in draws] == [[1, n] for n in range(4)]
    for column in range(1, 5):
        assert len({d[column] for d in draws}) == 4, draws
    seen = {one.info.name for one in [box, *clones]}
    assert len(seen) == 4


@saves
async def test_a_snapshot_waits_for_the_running_cell_and_holds_the_next(make: Make, boxes: Sandboxes) -> None:
    box = await make()
    started = asyncio.Event()
    code = "import time; print('on', flush=True); time.sleep(0.6); done = 1"
    running = asyncio.create_task(box.run_cell(code, cell_id="a", on_output=lambda *_: started.set()))
    await started.wait()
    with pytest.raises(SandboxBusy, match=r"'a' still runs after 0\.05 s") as caught:
        await box.snapshot(wait_s=0.05)
    assert caught.value.param == "wait_s"
    saving = asyncio.create_task(box.snapshot())
    await asyncio.sleep(0)  # it has begun to wait
    following = asyncio.create_task(box.run_cell("done += 1; done", cell_id="b"))
    clone = await boxes.restore(await saving)
    assert (await running).ok
    assert (await following).value == "2"
    assert (await clone.run_cell("done", cell_id="c")).value == "1", "saved between the two"


@pytest.mark.parametrize("backend", ["gvisor"], indirect=True)
async def test_snapshots_do_not_fill_a_sandbox_s_own_memory(make: Make, boxes: Sandboxes) -> None:
    """Pages of a snapshot's files are charged to whoever wrote them first: the sandbox's kernel."""
    box = await make()
    before = box.machine.memory_bytes()
    saved = 0
    for n in range(6):
        await box.run_cell(f"x = {n}", cell_id=str(n))
        manifest = boxes.snapshots.manifest(await box.snapshot())
        saved += sum(f.size for f in manifest.files)
    after = box.machine.memory_bytes()
    assert before is not None
    assert after is not None
    assert after - before < saved / 2, (before, after, saved)


@saves
async def test_what_became_of_files_is_in_the_log_with_each_snapshot(make: Make, boxes: Sandboxes) -> None:
    box = await make()
    await box.exec(["sh", "-c", "echo 1 > a; echo 2 > b; mkdir d; echo 3 > d/c"], cell_id="1")
    first = await box.snapshot()
    await box.exec(
        ["sh", "-c", "rm a; mv b d/moved; echo more >> d/c; echo 4 > $(printf 'odd\\377')"], cell_id="2"
    )
    await box.snapshot()
    clone = await boxes.restore(first)
    await clone.exec(["rm", "d/c"], cell_id="3")
    await clone.snapshot()
    kept = ("created", "changed", "deleted", "renamed")

    def files(of: Box) -> list[list[object]]:
        found = [r for r in records(boxes.home.audit, of.record.id) if r["kind"] == "files"]
        return [[r[k] for k in kept] for r in found]

    assert files(box) == [
        [["/work/a", "/work/b", "/work/d/c"], [], [], []],
        [["/work/odd\\xff"], ["/work/d/c"], ["/work/a"], [["/work/b", "/work/d/moved"]]],
    ]
    assert files(clone) == [[[], [], ["/work/d/c"], []]]


@gvisor_first
async def test_pause_stops_time_for_deadlines(make: Make) -> None:
    box = await make()
    running = asyncio.create_task(box.exec(["sleep", "1.2"], cell_id="a", timeout_s=2.0))
    await asyncio.sleep(0.4)
    await box.pause()
    with pytest.raises(SandboxBusy):
        await box.run_cell("1", cell_id="b")
    await asyncio.sleep(2.0)
    await box.resume()
    assert (await running).ok


@gvisor_first
async def test_what_is_asked_becomes_spans_below_the_caller_s(make: Make) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    api = pytest.MonkeyPatch()
    api.setattr("opentelemetry.trace.get_tracer", provider.get_tracer)
    try:
        box = await make("traced")
        with provider.get_tracer("agent").start_as_current_span("execute_tool python"):
            await box.run_cell("1 / 0", cell_id="a")
            await box.exec(["false"], cell_id="b")
            if box.backend.can_snapshot:
                await box.snapshot(epoch=7)
                await box.fork(1)
    finally:
        api.undo()
    spans = {s.name: s for s in exporter.get_finished_spans()}
    parent = spans["execute_tool python"]
    assert all(s.parent.span_id == parent.context.span_id for s in spans.values() if s is not parent)
    cell = dict(spans["sandbox.cell"].attributes)
    assert cell["mortice.sandbox.strength"] == box.backend.strength
    assert (cell["mortice.sandbox.cell"], cell["mortice.sandbox.replayed"]) == ("a", False)
    assert cell["error.type"] == "ZeroDivisionError"
    assert spans["sandbox.exec"].attributes["process.exit.code"] == 1
    assert "1 / 0" not in str([s.attributes for s in spans.values()]), "code is content"
    if box.backend.can_snapshot:
        assert spans["sandbox.snapshot"].attributes["mortice.sandbox.epoch"] == 7
        assert spans["sandbox.fork"].attributes["mortice.sandbox.num_forks"] == 1


async def test_one_owner_at_a_time(make: Make, boxes: Sandboxes) -> None:
    box = await make("mine")
    other = Sandboxes(boxes.home.root)
    other.backends = boxes.backends
    try:
        with pytest.raises(SandboxBusy):
            await other.attach("mine")
        with pytest.raises(SandboxBusy):
            await other.create(box.record.spec, name="mine")
    finally:
        await other.close()
    assert (await box.run_cell("1 + 1", cell_id="a")).value == "2"


async def test_what_is_not_there_is_refused_by_name_and_never_replaced(boxes: Sandboxes) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        await boxes.create(SandboxSpec(backend="microvm"))
    assert "microvm" in caught.value.message
    assert boxes.list() == []


@pytest.mark.parametrize("backend", ["gvisor"], indirect=True)  # the one whose kernel reports
async def test_every_act_stands_in_the_log_with_its_strength(make: Make, boxes: Sandboxes) -> None:
    box = await make()
    await box.exec(["python3", "-c", "open('/work/out', 'w'); open('/etc/shadow')"], cell_id="a")
    await box.exec(
        ["python3", "-c", "import socket; socket.create_connection(('192.0.2.7', 443))"], cell_id="b"
    )
    await box.write("/work/x", b"1")
    chain = box.record.id
    await box.destroy()
    for _ in range(100):
        found = list(records(boxes.home.audit, chain))
        events = [r for r in found if r["kind"] == "event"]
        if any(e["what"] == "connect" for e in events):
            break
        await asyncio.sleep(0.05)
    mine = [r for r in found if r["kind"] not in ("event", "gap", "buried")]
    assert {"create", "exec", "exit", "write", "destroy"} <= {r["kind"] for r in mine}
    assert all(r["strength"] == "gvisor" for r in mine)
    assert any(e["what"] == "exec" and "/usr/bin/python3" in e["path"] for e in events)
    assert any(e["what"] == "open" and e["path"] == "/work/out" for e in events)
    assert any(e["what"] == "open" and e["path"] == "/etc/shadow" and e["errno"] == "EACCES" for e in events)
    assert any(e["what"] == "connect" and e["address"] == "192.0.2.7:443" for e in events)
    assert verify(boxes.home.audit).ok, json.dumps(found[-3:])


@pytest.mark.parametrize("backend", ["process"], indirect=True)
async def test_what_a_back_end_cannot_do_it_refuses_by_name(make: Make) -> None:
    box = await make()
    with pytest.raises(NotSupported, match="gvisor"):
        await box.snapshot()
    with pytest.raises(NotSupported, match="gvisor"):
        await box.fork(2)
    assert (await box.run_cell("1 + 1", cell_id="a")).value == "2"


@saves
async def test_an_idle_machine_is_parked_and_never_in_the_middle_of_something(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mortice.sandbox.parking.PARK_AFTER_S", 0.01)
    box = await make()
    for n in range(8):
        assert (await box.run_cell(f"{n}", cell_id=f"a{n}")).value == str(n)
        await box.snapshot()
    await asyncio.sleep(0.3)
    assert await box.park_if_quiet()
    assert (await box.run_cell("'awake'", cell_id="b")).value == "'awake'"
    await box.exec(["sh", "-c", "sleep 30 >/dev/null 2>&1 &"], cell_id="c")
    assert not await box.park_if_quiet(), "something inside still runs"
