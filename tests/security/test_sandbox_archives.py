"""Archives made to hurt whoever unpacks them, and paths that change under whoever follows them: the host's files stay as
they are, since everything is unpacked and followed inside the guest, with its user's rights."""

import asyncio
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mortice.sandbox import GuestFileError, Sandboxes
from mortice.sandbox.box import Box

MIB = 1 << 20
Make = Callable[..., Awaitable[Box]]
gvisor_first = pytest.mark.parametrize(
    "backend", ["gvisor", pytest.param("process", marks=pytest.mark.slow)], indirect=True
)
"""The quick form runs on gVisor, and on `process` among the slow tests."""


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    """A file of the host at a path that archives and links aim at."""
    path = tmp_path / "sentinel"
    path.write_text("untouched")
    return path


def hostile_tar(sentinel: Path) -> bytes:
    """Names that climb, links out of the folder, files through them, devices, and names that no one can print."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:

        def add(
            name: str, kind: bytes = tarfile.REGTYPE, target: str = "", data: bytes = b"overwritten"
        ) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, target, 0o6777
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            info.devmajor, info.devminor = (8, 0) if kind == tarfile.BLKTYPE else (1, 1)
            tar.addfile(info, io.BytesIO(data) if kind == tarfile.REGTYPE else None)

        add("../" * 12 + str(sentinel).lstrip("/"))
        add(str(sentinel))
        add("out", tarfile.SYMTYPE, str(sentinel.parent))
        add("out/sentinel")
        add("up", tarfile.SYMTYPE, "../../../../../..")
        add("up" + str(sentinel))
        add("hard", tarfile.LNKTYPE, str(sentinel))
        add("hard")
        add("passwd", tarfile.LNKTYPE, "/etc/passwd")
        add("sda", tarfile.BLKTYPE)
        add("mem", tarfile.CHRTYPE)
        add("fifo", tarfile.FIFOTYPE)
        add("line\nbreak")
        add("\u202egnp.exe")
        add("kept", data=b"an honest file")
    return out.getvalue()


@pytest.mark.parametrize(
    "unpack",
    [
        ["tar", "-xPf", "/work/a.tar", "-C", "/work/x"],
        ["python3", "-c", "import tarfile, sys\nfor m in (t := tarfile.open('/work/a.tar')):\n"
         "    try: t.extract(m, '/work/x', filter='fully_trusted')\n    except OSError as e: print(e, file=sys.stderr)"],
    ],
    ids=["tar", "python"],
)  # fmt: skip
async def test_a_hostile_tar_leaves_the_host_s_files_and_yields_its_honest_one(
    make: Make, sentinel: Path, unpack: list[str]
) -> None:
    box = await make()
    before = sorted(os.listdir(sentinel.parent))
    await box.write("/work/a.tar", hostile_tar(sentinel))
    await box.exec(["mkdir", "/work/x"], cell_id="0")
    await box.exec(unpack, cell_id="1", timeout_s=30)
    assert sentinel.read_text() == "untouched"
    assert sorted(os.listdir(sentinel.parent)) == before
    assert await box.read("/work/x/kept") == b"an honest file"
    for name in ("/work/x/out/sentinel", f"/work/x/up{sentinel}", "/work/x/mem", "/work/x/fifo"):
        try:
            data = await box.read(name)
        except GuestFileError:
            continue
        assert data == b"overwritten", name  # a file of the guest's own at such a path
    with pytest.raises(GuestFileError):
        await box.write("/work/x/hard/../../../../root/late", b"x")
    assert sentinel.read_text() == "untouched"
    assert (await box.run_cell("40 + 2", cell_id="after")).value == "42"


def zip_bomb(*, depth: int, copies: int, size: int) -> bytes:
    """A zip of zips of ... zeros: each level holds `copies` of the one below."""
    data, name = bytes(size), "zeros"
    for level in range(depth):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
            for n in range(copies):
                file.writestr(f"{name}{n}", data)
        data, name = out.getvalue(), f"level{level}-"
    return data


@gvisor_first
async def test_zip_bombs_meet_the_disk_limit_and_cost_the_host_nothing(make: Make) -> None:
    box = await make(disk_bytes=16 * MIB)
    flat, nested = zip_bomb(depth=1, copies=16, size=16 * MIB), zip_bomb(depth=3, copies=8, size=4 * MIB)
    assert len(flat) < MIB, "a quarter of a gigabyte packed"
    assert len(nested) < MIB, "as much again"
    await box.write("/work/flat.zip", flat)
    await box.write("/work/nested.zip", nested)
    code = "import zipfile; zipfile.ZipFile('/work/flat.zip').extractall('/work/x')"
    result = await box.run_cell(code, cell_id="flat", timeout_s=60)
    assert (result.ok, result.failure and result.failure.reason) == (False, "disk"), result
    await box.exec(["rm", "-rf", "/work/x"], cell_id="rm")
    code = (
        "import zipfile, io\n"
        "def unpack(data, to):\n"
        "    for name in (z := zipfile.ZipFile(io.BytesIO(data))).namelist():\n"
        "        inner = z.read(name)\n"
        "        unpack(inner, to + name) if inner[:2] == b'PK' else open(to + name, 'wb').write(inner)\n"
        "unpack(open('/work/nested.zip', 'rb').read(), '/work/n-')"
    )
    result = await box.run_cell(code, cell_id="nested", timeout_s=60)
    assert (result.ok, result.failure and result.failure.reason) == (False, "disk"), result
    await box.exec(["sh", "-c", "rm -rf /work/*"], cell_id="rm2")
    assert (await box.run_cell("40 + 2", cell_id="after")).value == "42"


SWAPPER = """
import os, sys
os.makedirs('/work/real', exist_ok=True)
target, most = sys.argv[1], int(sys.argv[2])
n = 0
while n < most:
    try:
        os.rename('/work/real', '/work/d'); os.rename('/work/d', '/work/real')
        os.symlink(target, '/work/d'); os.unlink('/work/d')
    except OSError:
        pass
    n += 1
open('/work/swaps', 'w').write(str(n))
"""


async def race(box: Box, boxes: Sandboxes, sentinel: Path, swaps: int) -> int:
    """Swap a folder for a link to the host's folder while the host reads, writes and saves. How many operations raced."""
    await box.write("/work/swapper.py", SWAPPER.encode())
    command = ["python3", "/work/swapper.py", str(sentinel.parent), str(swaps)]
    swapping = asyncio.create_task(box.exec(command, cell_id="swap", timeout_s=900))
    operations = 0
    while not swapping.done():
        for call in (box.write("/work/d/sentinel", b"overwritten"), box.read("/work/d/sentinel")):
            try:
                data = await call
            except GuestFileError:
                continue
            finally:
                operations += 1
            assert data in (None, b"overwritten")
        if operations % 100 == 0 and box.backend.can_snapshot:
            boxes.snapshots.remove(await box.snapshot())
    assert (await swapping).ok
    assert sentinel.read_text() == "untouched"
    assert await box.read("/work/swaps") == str(swaps).encode()
    return operations


@gvisor_first
async def test_links_swapped_while_the_host_works_lead_nowhere(
    make: Make, boxes: Sandboxes, sentinel: Path
) -> None:
    assert await race(await make(), boxes, sentinel, 2_000) > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_a_hundred_thousand_swapped_links_lead_nowhere(
    make: Make, boxes: Sandboxes, sentinel: Path
) -> None:
    assert await race(await make(), boxes, sentinel, 100_000) > 0


async def test_nothing_in_the_host_s_home_belongs_to_a_guest_or_can_be_run_as_another(
    make: Make, boxes: Sandboxes
) -> None:
    """What guests wrote lies in images and logs only: no setuid bit and no device node of theirs reaches a host folder."""
    box = await make()
    await box.exec(["sh", "-c", "cp /bin/sh /work/s; chmod 6777 /work/s; mknod /work/n c 1 1"], cell_id="1")
    if box.backend.can_snapshot:
        await box.snapshot()
    for path in boxes.home.root.rglob("*"):
        mode = path.lstat().st_mode
        assert not mode & (stat.S_ISUID | stat.S_ISGID), path
        assert not (stat.S_ISBLK(mode) or stat.S_ISCHR(mode)) or path.parent.name in ("root", "dev"), path
