"""Sandboxes for tests: a home of their own, and a check that nothing is left on the host."""

import datetime
import glob
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mortice.sandbox import Limits, Sandboxes, SandboxSpec
from mortice.sandbox.backends.microvm import MicroVM
from mortice.sandbox.box import Box
from mortice.sandbox.images import find_vm
from mortice.sandbox.kvm import probe_kvm

MIB = 1 << 20
Make = Callable[..., Awaitable[Box]]


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all tests of this folder: the process that records what guests do starts once."""
    return tmp_path_factory.mktemp("sandboxes") / "home"


@pytest.fixture
async def boxes(needs_sandboxes: None, shared_home: Path, booted: dict[str, str]) -> AsyncIterator[Sandboxes]:
    async with Sandboxes(shared_home) as found:
        yield found
        ids = [record.id for record in found.books.records()]
        for manifest in found.snapshots.list():
            if manifest.id not in booted.values():
                found.snapshots.remove(manifest.id)
    for box_id in ids:
        assert not glob.glob(f"/sys/fs/cgroup/*/mortice/{box_id}"), "a control group was left behind"
    assert not list((shared_home / "boxes").iterdir())


@pytest.fixture(params=["gvisor", "process"])
def backend(request: pytest.FixtureRequest) -> str:
    """Every test of the contract runs on each of these; `only_gvisor` narrows one to what the others cannot do."""
    return str(request.param)


@pytest.fixture(scope="session")
def booted() -> dict[str, str]:
    """Snapshots of machines that have just booted, by what they were made from: a boot takes ten seconds, a clone one."""
    return {}


@pytest.fixture
def make(boxes: Sandboxes, backend: str, booted: dict[str, str]) -> Make:
    if backend == "microvm":
        if find_vm() is None:
            pytest.skip("needs what `mortice sandbox setup --vm` installs (QEMU, a guest kernel)")
        boxes.backends["microvm"] = MicroVM(emulated=not probe_kvm().hardware)

    async def make(name: str | None = None, **limits: float) -> Box:
        spec = SandboxSpec(backend=backend, limits=Limits(**({"memory_bytes": 256 * MIB} | limits)))  # type: ignore[arg-type]
        if backend != "microvm":
            return await boxes.create(spec, name=name)
        key = msgspec.json.encode(spec).decode()
        if key not in booted:
            first = await boxes.create_box(spec)
            booted[key] = await first.snapshot()
            await first.destroy()
        return await boxes.restore(booted[key], name=name)

    return make


@pytest.fixture(scope="session")
def certificate() -> Callable[[Path, str], Path]:
    """Writes a key and a certificate that signs itself, of a host, into a file; its path again."""
    return _certificate


def _certificate(path: Path, host: str) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False).sign(key, hashes.SHA256())
    )  # fmt: skip
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path
