"""Programs and root file systems that guests need: where they are once `mortice sandbox setup` has made them."""

import json
import os
import shutil
from pathlib import Path

import msgspec

from mortice.sandbox.home import images_folder


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """A root file system that all boxes share, read-only. `digest` names its content."""

    name: str
    root: Path
    digest: str


def find_image(name: str) -> Image | None:
    """The image of that name, if it was finished."""
    folder = images_folder() / "images" / name
    note = folder / "image.json"
    if not note.exists():
        return None
    return Image(name=name, root=folder / "root", digest=json.loads(note.read_text())["digest"])


class Vm(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine with a kernel of its own is started from; `digest` is over every file of it."""

    program: list[str]
    kernel: Path
    initrd: Path
    disk: Path
    digest: str


def vm_folder() -> Path:
    return images_folder() / "vm"


def find_vm() -> Vm | None:
    """QEMU, started by its own loader with its own libraries, and the guest's parts, if set-up was asked for them."""
    folder = vm_folder()
    note = folder / "vm.json"
    if not note.exists():
        return None
    qemu = folder / "qemu"
    loader = [str(qemu / "ld-linux-x86-64.so.2"), "--library-path", str(qemu)]
    return Vm(
        program=[*loader, str(qemu / "qemu-system-x86_64"), "-L", str(qemu)],
        kernel=folder / "kernel",
        initrd=folder / "initrd",
        disk=folder / "disk",
        digest=json.loads(note.read_text())["digest"],
    )


def emulation_wanted() -> bool:
    """Whether `microvm` may run guests without KVM: $MORTICE_MICROVM=emulated. For tests; it is slow and no wall."""
    return os.environ.get("MORTICE_MICROVM") == "emulated"


def find_program(name: str) -> Path | None:
    """$MORTICE_RUNSC and the like, then our own pinned copy; from PATH only where the version does not matter."""
    named = os.environ.get(f"MORTICE_{name.upper().replace('-', '_')}")
    if named:
        return Path(named)
    own = images_folder() / "bin" / name
    if own.exists():
        return own
    if name == "runsc":
        return None
    found = shutil.which(name)
    return Path(found) if found else None
