"""Pure functions in a bytecode engine: computed, bounded, and without anything to reach for."""

from pathlib import Path

import pytest

from mortice.sandbox import NotSupported, Sandboxes, SandboxSpec, Strength
from mortice.sandbox.backends.wasm import interpreter, module_path
from mortice.sandbox.contract import Limits, Sandbox

pytestmark = pytest.mark.skipif(
    interpreter() is None or not module_path().exists(),
    reason="needs the wasm extra and `mortice sandbox setup`",
)
MIB = 1 << 20


@pytest.fixture
async def box(tmp_path: Path) -> Sandbox:
    async with Sandboxes(tmp_path / "home") as boxes:
        limits = Limits(memory_bytes=128 * MIB, output_bytes=MIB)
        yield await boxes.create(SandboxSpec(backend="wasm", limits=limits))


async def test_it_computes_and_forgets(box: Sandbox) -> None:
    result = await box.run_cell("print('hi'); x = sum(range(10)); x", cell_id="a")
    assert (result.ok, result.value, result.stdout, result.strength) == (True, "45", "hi\n", Strength.WASM)
    assert (await box.run_cell("x", cell_id="b")).error.type == "NameError"  # type: ignore[union-attr]
    again = await box.run_cell("something else", cell_id="a")
    assert (again.value, again.replayed) == ("45", True)
    assert (await box.exec(["python3", "-c", "print(6*7)"], cell_id="c")).stdout == "42\n"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("while True: pass", "timeout"),
        ("x = bytearray(300 << 20)", "oom"),
        ("x = [0]\nwhile True: x += x", "oom"),
        ("while True: print('x' * 100000)", "output"),
    ],
)
async def test_its_limits_are_named(box: Sandbox, code: str, reason: str) -> None:
    result = await box.run_cell(code, cell_id="a", timeout_s=2 if reason == "timeout" else 30)
    assert (result.ok, result.failure and result.failure.reason) == (False, reason), result


async def test_there_is_nothing_to_reach(box: Sandbox) -> None:
    tries = [
        "open('/etc/passwd')", "__import__('os').listdir('/')", "__import__('socket').create_connection(('127.0.0.1', 80))",
        "__import__('subprocess').run(['true'])", "__import__('os').fork()", "__import__('ctypes').CDLL(None)",
        "open('/tmp/x', 'w')", "__import__('threading').Thread(target=print).start()",
    ]  # fmt: skip
    code = f"done = []\nfor t in {tries!r}:\n    try:\n        eval(t); done.append(t)\n    except Exception: pass\ndone"
    assert (await box.run_cell(code, cell_id="a")).value == "[]"
    assert (await box.run_cell("dict(__import__('os').environ)", cell_id="b")).value == "{}"


async def test_what_it_cannot_do_it_refuses_by_name(box: Sandbox) -> None:
    for call in (
        box.snapshot(),
        box.fork(2),
        box.read("/work/a"),
        box.write("/work/a", b""),
        box.exec(["ls"], cell_id="x"),
    ):
        with pytest.raises(NotSupported, match="gvisor"):
            await call
