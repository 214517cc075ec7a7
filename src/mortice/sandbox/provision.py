"""Fetches what sandboxes need, once a user: runsc by hash, a root file system for guests, QEMU and a kernel for it.

All comes from Debian through apt, with lists and cache of our own beside the machine's, so nothing is installed on the
host and its configuration is left alone. Programs built for a newer Debian run through their own loader.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from mortice.sandbox.apt import KEYRING, RELEASE, Apt, own_apt, run
from mortice.sandbox.backends.wasm import interpreter, module_path
from mortice.sandbox.contract import SandboxError
from mortice.sandbox.home import images_folder
from mortice.sandbox.provision_vm import provision_vm

RUNSC_PACKAGE = "runsc=0.0~20240729.0-4+b7"
RUNSC_SHA256 = "ce52e04038baa76d6069afae5fc1bee60c153bbf0276f2c3c25506553526f38f"
GUEST_PYTHON = "3.13"
GUEST_WHEELS = ("numpy==2.5.5", "matplotlib==3.11.2")
AUTHORITIES_PACKAGE = "ca-certificates=20250419+deb13u1"
AUTHORITIES_SHA256 = "c10585ac22c7f617a73d394eea29ba71d0356f350ae973b19043d1b017f80f54"
AUTHORITIES = "etc/ssl/certs/ca-certificates.crt"
IMAGE_VERSION = "2"
Say = Callable[[str], None]


def provision(say: Say, *, vm: bool = False) -> list[str]:
    """Make what is missing, with `vm` also what `microvm` needs; returns one line for each part that could not be had.
    Safe to run twice or side by side."""
    folder = images_folder()
    folder.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    if os.geteuid() != 0:
        return ["root is needed to make a guest's root file system (device nodes, owners)"]
    if shutil.which("apt-get") is None or not KEYRING.exists():
        return [
            "apt-get and Debian's archive keys are needed; put runsc and images there by hand on other systems"
        ]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with own_apt() as apt:
            parts: list[tuple[str, Callable[[], None]]] = [
                ("runsc", lambda: _runsc(folder, apt, say)),
                ("base image", lambda: _base_image(folder, apt, say)),
                ("wasm", lambda: _wasm(say)),
            ]
            if vm:
                parts.append(("microvm", lambda: provision_vm(apt, say)))
            for name, make in parts:
                try:
                    make()
                except (SandboxError, subprocess.CalledProcessError, OSError) as error:
                    problems.append(f"{name}: {error}")
    return problems


def _runsc(folder: Path, apt: Apt, say: Say) -> None:
    target = folder / "bin" / "runsc"
    if target.exists() and _sha256(target) == RUNSC_SHA256:
        return
    say(f"runsc ({RUNSC_PACKAGE})")
    (package,) = apt.download(RUNSC_PACKAGE)
    unpacked = package.parent / "x"
    run(["dpkg-deb", "-x", str(package), str(unpacked)])
    program = unpacked / "usr" / "bin" / "runsc"
    if (found := _sha256(program)) != RUNSC_SHA256:
        raise SandboxError(f"runsc has SHA-256 {found}, not the pinned {RUNSC_SHA256}; it was not installed")
    target.parent.mkdir(exist_ok=True)
    part = target.with_suffix(".part")
    shutil.copy(program, part)
    part.chmod(0o755)
    part.rename(target)


def _wasm(say: Say) -> None:
    """Compile the Python of the wasm back end, where its packages are installed."""
    if not module_path().exists() and interpreter() is not None and importlib.util.find_spec("wasmtime"):
        say("Python for wasm (half a minute of compiling)")
        module_path().parent.mkdir(parents=True, exist_ok=True)
        program = "import sys; from mortice.sandbox.backends.wasm_worker import compile_module; from pathlib import Path;"
        program += "compile_module(Path(sys.argv[1]), Path(sys.argv[2]))"
        run([sys.executable, "-c", program, str(interpreter()), str(module_path())])


def _base_image(folder: Path, apt: Apt, say: Say) -> None:
    target = folder / "images" / "base"
    wanted = f"{IMAGE_VERSION}:{RELEASE}:{','.join(GUEST_WHEELS)}"
    note = target / "image.json"
    if note.exists() and json.loads(note.read_text())["made_from"] == wanted:
        return
    say(f"a root file system with Python {GUEST_PYTHON} (Debian {RELEASE}; a minute or two)")
    part = folder / "images" / f".base.{os.getpid()}"
    root = part / "root"
    root.mkdir(parents=True)
    try:
        (package,) = apt.download("debootstrap")
        tool = package.parent / "x"
        run(["dpkg-deb", "-x", str(package), str(tool)])
        run(
            [str(tool / "usr/sbin/debootstrap"), "--variant=minbase", "--include=python3", f"--keyring={KEYRING}",
             RELEASE, str(root), apt.mirror],
            env={**os.environ, "DEBOOTSTRAP_DIR": str(tool / "usr/share/debootstrap")},
        )  # fmt: skip
        _trim(root)
        _wheels(root, say)
        _authorities(root, apt, say)
        _finish(root)
        digest = tree_digest(root)
        (part / "image.json").write_text(json.dumps({"made_from": wanted, "digest": digest}))
        if target.exists():
            target.rename(folder / "images" / f".old.{os.getpid()}")
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        for old in (folder / "images").glob(f".old.{os.getpid()}"):
            shutil.rmtree(old, ignore_errors=True)


def _trim(root: Path) -> None:
    """No documentation, no lists, and nothing that runs as another user than its caller."""
    for pattern in ("usr/share/doc/*", "usr/share/man/*", "usr/share/locale/*", "usr/share/info/*",
                    "usr/share/lintian/*", "var/lib/apt/lists/*", "var/cache/apt/*", "var/log/*"):  # fmt: skip
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o6000:
            path.chmod(path.stat().st_mode & 0o1777)


def _wheels(root: Path, say: Say) -> None:
    say(f"into it: {', '.join(GUEST_WHEELS)}")
    target = root / f"usr/local/lib/python{GUEST_PYTHON}/dist-packages"
    run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
         "--root-user-action=ignore", "--ignore-requires-python", f"--target={target}", f"--python-version={GUEST_PYTHON}",
         "--only-binary=:all:", *(f"--platform=manylinux{p}_x86_64" for p in ("_2_28", "_2_27", "_2_17", "2014")),
         *GUEST_WHEELS]
    )  # fmt: skip
    run(
        [
            "chroot",
            str(root),
            "/usr/bin/python3",
            "-m",
            "compileall",
            "-q",
            "-j",
            "1",
            f"/{target.relative_to(root)}",
        ]
    )


def _authorities(root: Path, apt: Apt, say: Say) -> None:
    """Certificates of public authorities, where OpenSSL and so Python look for them: a guest checks TLS by itself."""
    say(f"into it: {AUTHORITIES_PACKAGE}")
    (package,) = apt.download(AUTHORITIES_PACKAGE)
    if (found := _sha256(package)) != AUTHORITIES_SHA256:
        raise SandboxError(f"ca-certificates has SHA-256 {found}, not the pinned {AUTHORITIES_SHA256}")
    unpacked = package.parent / "x"
    run(["dpkg-deb", "-x", str(package), str(unpacked)])
    texts = [p.read_text().strip() for p in sorted(unpacked.glob("usr/share/ca-certificates/mozilla/*.crt"))]
    bundle = root / AUTHORITIES
    bundle.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_text("\n".join(texts) + "\n")
    openssl = root / "usr/lib/ssl"
    openssl.mkdir(parents=True, exist_ok=True)
    (openssl / "cert.pem").unlink(missing_ok=True)
    (openssl / "cert.pem").symlink_to(f"/{AUTHORITIES}")


def _finish(root: Path) -> None:
    for folder in ("work", "home/user", "run", "tmp", "dev/shm"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "etc/machine-id").unlink(missing_ok=True)
    (root / "etc/machine-id").symlink_to("/run/machine-id")
    (root / "etc/hostname").write_text("sandbox\n")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text("# names are resolved by the egress proxy\n")
    with (root / "etc/passwd").open("a") as file:
        file.write("user:x:1000:1000:user:/home/user:/bin/bash\n")
    with (root / "etc/group").open("a") as file:
        file.write("user:x:1000:\n")


def tree_digest(root: Path) -> str:
    """SHA-256 over path, mode, target and content of every entry."""
    total = hashlib.sha256()
    for path in sorted(root.rglob("*"), key=lambda p: p.as_posix()):
        info = path.lstat()
        total.update(
            f"{path.relative_to(root).as_posix()}\0{info.st_mode:o}\0".encode("utf-8", "surrogateescape")
        )
        if path.is_symlink():
            total.update(os.readlink(path).encode("utf-8", "surrogateescape"))
        elif path.is_file():
            total.update(bytes.fromhex(_sha256(path)))
    return total.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
