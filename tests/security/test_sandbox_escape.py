"""Guest code that looks for a way out, and guests that lie to their supervisor."""

import asyncio
import json
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mortice.sandbox import GuestFileError, SandboxBusy, SandboxError, Sandboxes
from mortice.sandbox.box import Box
from mortice.sandbox.channel import MAX_LINE, Channel

Make = Callable[..., Awaitable[Box]]
gvisor_first = pytest.mark.parametrize(
    "backend", ["gvisor", pytest.param("process", marks=pytest.mark.slow)], indirect=True
)
"""The quick form runs on gVisor, and on `process` among the slow tests."""

PROBES = r"""
import ctypes, errno, os, signal, socket
libc = ctypes.CDLL(None, use_errno=True)
out = {}
def attempt(name, call):
    try:
        result = call()
        out[name] = 'DONE' if result is None or result is True else repr(result)[:60]
    except OSError as error:
        out[name] = 'no: ' + errno.errorcode.get(error.errno, str(error.errno))
    except Exception as error:
        out[name] = 'no: ' + type(error).__name__
def sys(number, *arguments):
    def call():
        if libc.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), '')
    return call
def write(path, data=b'x'):
    def call():
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, data)
        os.close(fd)
    return call
def read(path):
    def call():
        with open(path, 'rb') as file:
            return file.read(1) != b''
    return call
for path in ('/proc/sys/kernel/core_pattern', '/proc/sys/kernel/modprobe', '/proc/sysrq-trigger', '/proc/1/mem',
             '/proc/1/environ',
             '/proc/self/exe', '/sys/fs/cgroup/release_agent', '/proc/sys/fs/binfmt_misc/register', '/dev/kvm', '/dev/mem',
             '/proc/1/oom_score_adj', '/etc/passwd', '/usr/bin/python3', '/dev/vda', '/proc/1/fd/64'):
    attempt('write ' + path, write(path))
for path in ('/proc/kcore', '/etc/shadow', '/proc/1/environ', '/proc/1/mem', '/proc/1/root/etc/hostname', '/root/.bashrc',
             '/dev/vda',
             '/proc/1/maps'):
    attempt('read ' + path, read(path))
attempt('setuid', lambda: os.setuid(0))
attempt('mknod', lambda: os.mknod('/tmp/disk', 0o60666, os.makedev(8, 0)))
attempt('chroot', lambda: os.chroot('/tmp'))
attempt('mount', sys(165, b'none', b'/tmp', b'tmpfs', 0, None))
for name, number, arguments in (
        ('unshare user', 272, (0x10000000,)), ('unshare mount', 272, (0x20000,)), ('setns', 308, (0, 0)), ('pivot_root', 155, (b'/', b'/')),
        ('ptrace agent', 101, (16, 1, 0, 0)), ('bpf', 321, (0, 0, 0)), ('io_uring', 425, (1, ctypes.create_string_buffer(120))),
        ('userfaultfd', 323, (0,)), ('keyctl', 250, (0, -3, 1)), ('kexec', 246, (0, 0, 0, 0)), ('init_module', 175, (0, 0, b'')),
        ('perf', 298, (ctypes.create_string_buffer(112), 0, -1, -1, 0)), ('reboot', 169, (0xfee1dead, 672274793, 0)),
        ('open_by_handle', 304, (0, 0, 0)), ('settimeofday', 164, (ctypes.create_string_buffer(16), 0)), ('swapon', 167, (b'/tmp/x', 0)),
        ('process_vm_writev agent', 311, (1, 0, 0, 0, 0, 0)), ('iopl', 172, (3,))):
    attempt(name, sys(number, *arguments))
for name, arguments in (('packet', (17, 3)), ('raw', (2, 3, 1)), ('alg', (38, 5)), ('vsock', (40, 1)), ('netlink audit', (16, 3, 9))):
    attempt('socket ' + name, lambda: socket.socket(*arguments) and None)
attempt('kill agent', lambda: os.kill(1, signal.SIGKILL))
attempt('stop agent', lambda: os.kill(1, signal.SIGSTOP))
def host_sockets():
    for path in ('/run/docker.sock', '/var/run/docker.sock', '/run/systemd/private', '/run/dbus/system_bus_socket'):
        if os.path.exists(path):
            return path
    raise OSError(errno.ENOENT, '')
attempt('host sockets', host_sockets)
attempt('setuid files', lambda: [f for d, _, fs in os.walk('/usr') for f in fs
        if os.path.lexists(os.path.join(d, f)) and os.lstat(os.path.join(d, f)).st_mode & 0o6000] or (_ for _ in ()).throw(OSError(errno.ENOENT, '')))
others = [p for p in os.listdir('/proc') if p.isdigit() and p not in ('1', str(os.getpid()))]
out['others'] = len(others)
out['uname'] = os.uname().nodename
out
"""  # noqa: E501


async def test_no_known_way_out_works(make: Make, tmp_path: Path) -> None:
    box = await make()
    result = await box.run_cell(PROBES, cell_id="probes", timeout_s=60)
    assert result.ok, result
    found = eval(result.value or "{}")
    assert found.pop("uname") != os.uname().nodename
    assert found.pop("others") <= 1, "processes of others can be seen"
    # gVisor lets these touch objects of its own kernel, which is the guest's alone: a namespace, a node that cannot be
    # opened, a key ring, a socket without a network; and the first process that guest code can see only sleeps
    own = {"read /proc/1/environ", "read /proc/1/maps", "mknod", "unshare user", "unshare mount", "keyctl",
           "process_vm_writev agent", "socket packet", "socket raw", "perf"}  # fmt: skip
    allowed = own if box.backend.name == "gvisor" else set()
    worked = {
        name: said for name, said in found.items() if not said.startswith("no: ") and name not in allowed
    }
    assert not worked, worked
    assert len(found) > 45
    assert (await box.run_cell("1 + 1", cell_id="after")).value == "2"


@gvisor_first
async def test_guest_code_cannot_speak_for_the_agent(make: Make) -> None:
    """It writes results of its own wherever it can reach a descriptor; none of them is believed for another id."""
    box = await make()
    code = r"""
import json, os
wrote = 0
for pid in os.listdir('/proc'):
    if pid.isdigit():
        for fd in range(0, 80):
            try:
                handle = os.open(f'/proc/{pid}/fd/{fd}', os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                continue
            if pid != str(os.getpid()) and os.readlink(f'/proc/{pid}/fd/{fd}') != '/dev/null':
                wrote += 1
            os.close(handle)
wrote
"""
    assert (await box.run_cell(code, cell_id="a")).value == "0", "the agent's descriptors can be opened"
    forged = json.dumps({"op": "cell", "id": "b", "value": "forged"})
    lie = f"import os; os.write(4, {forged!r}.encode() + b'\\n'); 'real'"
    assert (await box.run_cell(lie, cell_id="b2")).value == "'real'"
    broken = await box.run_cell(
        "import os; os.write(4, b'not a message\\n'); import time; time.sleep(5)", cell_id="c"
    )
    assert (broken.failure and broken.failure.reason) == "interpreter_exit"
    for kill in (
        "os.kill(os.getpid(), 9)",
        "os._exit(0)",
        "os.close(3); os.close(4)",
        "os.kill(os.getpid(), 19)",
    ):
        ended = await box.run_cell(f"import os; {kill}", cell_id=f"kill-{kill}", timeout_s=2)
        assert ended.failure is not None, kill
        assert (await box.run_cell("6 * 7", cell_id=f"after-{kill}")).value == "42", kill


async def test_links_lead_nowhere_on_the_host(make: Make, tmp_path: Path) -> None:
    """File operations happen inside, as the guest's user, so a swapped link reaches the guest's files at most."""
    secret = tmp_path / "secret"
    secret.write_text("host secret")
    box = await make()
    await box.exec(["sh", "-c", f"ln -s {secret} /work/a; ln -s /etc/shadow /work/b; mkfifo /work/p"],
                   cell_id="a")  # fmt: skip
    for name in "abp":
        with pytest.raises(GuestFileError):
            await box.read(f"/work/{name}")
    await box.write("/work/a", b"mine now")
    assert secret.read_text() == "host secret"
    assert await box.read("/work/a") == b"mine now"
    swap = (
        "import os\nwhile True:\n    os.makedirs('/work/d', exist_ok=True); os.rename('/work/d', '/work/e')\n"
        "    os.symlink('/etc', '/work/d'); os.unlink('/work/d'); os.rmdir('/work/e')"
    )
    running = asyncio.create_task(box.exec(["python3", "-c", swap], cell_id="swap", timeout_s=6))
    outcomes = {"written": 0, "refused": 0}
    while not running.done():
        try:
            await box.write("/work/d/passwd", b"x")
            outcomes["written"] += 1
        except GuestFileError:
            outcomes["refused"] += 1
    await running
    assert sum(outcomes.values()) > 0
    assert Path("/etc/passwd").read_text() != "x"
    assert (await box.exec(["head", "-c", "4", "/etc/passwd"], cell_id="check")).stdout == "root"


class Liar:
    """The far end of a channel, in the hands of an attacker."""

    def __init__(self) -> None:
        self.read_fd, self.out = os.pipe()
        self.into, self.write_fd = os.pipe()
        self.channel = Channel(self.read_fd, self.write_fd)

    async def say(self, data: bytes) -> None:
        os.set_blocking(self.out, False)
        view = memoryview(data)
        while view and self.channel.closed is None:
            try:
                view = view[os.write(self.out, view) :]
            except BlockingIOError:
                await asyncio.sleep(0.001)

    async def greet(self) -> None:
        hello = asyncio.create_task(self.channel.hello(5))
        await asyncio.sleep(0)
        nonce = json.loads(os.read(self.into, 4096).strip())["nonce"]
        await self.say(
            b'garbage \xff\n{"ev":"hello","nonce":"wrong"}\n'
            + json.dumps({"ev": "hello", "nonce": nonce}).encode()
            + b"\n"
        )
        await hello

    def close(self) -> None:
        self.channel.close()
        os.close(self.out)
        os.close(self.into)


async def test_lies_on_the_channel_end_it_or_are_ignored() -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    draw = random.Random(seed)
    for lie in (
        b"not json\n",
        b"[1,2,3]\n",
        b"\xff\xfe\xfd\n",
        b"x" * (MAX_LINE + 2),
        b'{"ev":"out","id":"a","s":1,"d":"%%%"}\n',
        draw.randbytes(5000).replace(b"\n", b"") + b"\n",
    ):
        liar = Liar()
        await liar.greet()
        waiting = liar.channel.expect("a")
        liar.channel.listen("a", lambda which, data: None)
        await liar.say(lie)
        with pytest.raises(SandboxError):
            await asyncio.wait_for(waiting, 10)
        liar.close()
    for harmless in (
        b'{"ev":"done","id":"someone else","ok":true}\n',
        b'{"ev":"what"}\n',
        b"{}\n",
        b'{"ev":"net","c":"x","k":[]}\n',
        b'{"ev":"hello","nonce":"again"}\n',
        b'{"ev":"out","id":"unknown","s":1,"d":"eA=="}\n',
    ):
        liar = Liar()
        await liar.greet()
        waiting = liar.channel.expect("a")
        await liar.say(harmless + b'{"ev":"ack","id":"a","ok":true}\n')
        assert (await asyncio.wait_for(waiting, 10))["ok"] is True
        liar.close()
    liar = Liar()
    await liar.greet()
    refused = liar.channel.expect("b")
    await liar.say(b'{"ev":"failed","id":"b","message":"' + b"m" * 10_000 + b'"}\n')
    with pytest.raises(SandboxBusy) as caught:
        await asyncio.wait_for(refused, 10)
    assert len(caught.value.message) < 600
    liar.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_sixty_four_forks_draw_nothing_alike(boxes: Sandboxes) -> None:
    box = await boxes.create()
    code = (
        "import random, uuid, secrets, tempfile, socket, numpy; random.seed(7); numpy.random.seed(7); g = 1"
    )
    assert (await box.run_cell(code, cell_id="a")).ok
    forks = await box.fork(64)
    assert [o.error for o in forks] == [None] * 64
    draw = (
        "(random.random(), uuid.uuid4().hex, uuid.uuid1().hex, secrets.token_hex(8),"
        " next(tempfile._get_candidate_names()),"
        " socket.gethostname(), open('/etc/machine-id').read(), float(numpy.random.random()),"
        " open('/run/generation').read())"
    )
    drawn = [eval((await o.box.run_cell(draw, cell_id="d")).value or "") for o in forks if o.box is not None]
    for column in range(9):
        assert len({d[column] for d in drawn}) == 64, (column, drawn[:4])
