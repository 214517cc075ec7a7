"""Creates, finds, saves and forks sandboxes; keeps their books in a home folder that several processes may share."""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Sequence
from functools import cached_property
from itertools import repeat
from pathlib import Path

import msgspec

from mortice.obs.audit import AuditLog
from mortice.sandbox.backends.gvisor import GVisor, RunscMachine
from mortice.sandbox.backends.microsandbox import Microsandbox
from mortice.sandbox.backends.microvm import MicroVM
from mortice.sandbox.backends.process import Process
from mortice.sandbox.backends.wasm import Wasm, WasmBox
from mortice.sandbox.books import Books, is_alive
from mortice.sandbox.box import Box
from mortice.sandbox.contract import (
    BackendUnavailable,
    BoxInfo,
    ForkOutcome,
    NotSupported,
    Probe,
    Sandbox,
    SandboxBusy,
    SandboxError,
    SandboxLost,
    SandboxSpec,
    Strength,
)
from mortice.sandbox.egress import CheckAddresses, Gate, Resolve, Tls, resolve
from mortice.sandbox.egress_rules import Rules, check_addresses
from mortice.sandbox.egress_tls import GUEST_BUNDLE, Authority, upstream_context
from mortice.sandbox.guest.source import agent_digest
from mortice.sandbox.home import Home
from mortice.sandbox.images import emulation_wanted, find_image
from mortice.sandbox.machine import Backend, Machine, started_at
from mortice.sandbox.probes import Probed, cached_probe
from mortice.sandbox.record import BoxRecord, Lease
from mortice.sandbox.recorder import Recorder
from mortice.sandbox.retention import Retention
from mortice.sandbox.secrets import Keyring, ReadValue
from mortice.sandbox.snapshots import Snapshots
from mortice.sandbox.spares import Spare, Spares
from mortice.sandbox.workspace import changes, load, save
from mortice.specs.errors import MorticeError, RequestError

Names = list[str]
Infos = list[BoxInfo]
Outcomes = list[ForkOutcome]
Probes = list[Probe]
DEFAULT_SPEC = SandboxSpec()
AUTO_ORDER = ("microvm", "microsandbox", "gvisor")
MAX_FORKS = 256


class Sandboxes:
    """The way in. `async with Sandboxes() as boxes:`; leaving it ends every sandbox that was not made with `keep`."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = Home(home)
        self.books = Books(self.home)
        self.audit = AuditLog(self.home.audit)
        self.snapshots = Snapshots(self.home)
        self.recorder = Recorder(self.home)
        self.backends: dict[str, Backend] = {
            b.name: b
            for b in (MicroVM(emulated=emulation_wanted()), Microsandbox(), GVisor(self.home), Process())
        }
        self.resolve: Resolve = resolve
        self.check_addresses: CheckAddresses = check_addresses
        self.read_secret: ReadValue = os.environ.get
        self.upstream_context = upstream_context  # of TLS to real hosts
        self.wasm = Wasm()
        self._mine: dict[str, Box] = {}
        self._spares = Spares()
        self.retention = Retention(self.home, self.snapshots, self.audit, self.books.records)
        self._tidying: asyncio.Future[None] | None = None

    async def __aenter__(self) -> "Sandboxes":
        await self.reconcile()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Destroy or release every sandbox this object owns, and close the log."""
        for box in list(self._mine.values()):
            try:
                await box.close()
            except MorticeError as error:
                self.audit.append("close_failed", chain=box.record.id, error=error.message)
        await self._spares.close()
        if self._tidying is not None:
            await self._tidying
        await asyncio.to_thread(self.audit.close)

    # ---- making

    async def create(
        self, spec: SandboxSpec = DEFAULT_SPEC, *, name: str | None = None, keep: bool = False
    ) -> Sandbox:
        """A fresh sandbox. Raises BackendUnavailable rather than take a weaker wall than was asked for."""
        if spec.backend != "wasm":
            return await self.create_box(spec, name=name, keep=keep)
        if keep or spec.egress.mode != "none":
            raise NotSupported(
                "wasm has nothing to keep and no way out; gvisor has", param="keep" if keep else "egress"
            )
        probe = await cached_probe(self.wasm, self.home)
        if not probe.works:
            raise BackendUnavailable(
                f"wasm: {probe.why_not} ({probe.remedy})", param="backend", code="backend_unavailable"
            )
        return WasmBox(spec, name, self.audit)

    async def create_box(
        self, spec: SandboxSpec = DEFAULT_SPEC, *, name: str | None = None, keep: bool = False
    ) -> Box:
        """As `create`, for back ends that have a machine."""
        Rules(spec.egress)  # a rule that cannot be is told before anything is made
        Keyring(spec.egress, self.read_secret).must_be_here()
        backend = await self.choose(spec)
        record, place, lease = self.books.claim(backend, spec, name, keep=keep, parent=None)
        box = await self._bring_up(record, place, lease, backend, None)
        if spec.egress.secrets:
            await box.write(GUEST_BUNDLE, self.authority.bundle())
        box.tree = {}
        self._tidy()
        return box

    @cached_property
    def authority(self) -> Authority:
        """Whose certificates guests with secrets trust."""
        return Authority(self.home)

    async def restore(self, snapshot_id: str, *, name: str | None = None, keep: bool = False) -> Box:
        """A sandbox that goes on where the snapshot was taken, as an instance of its own."""
        manifest = self.snapshots.manifest(snapshot_id)
        backend = self.backends.get(manifest.backend)
        image = find_image(manifest.spec.image)
        if backend is None or image is None:
            raise BackendUnavailable(
                f"snapshot {snapshot_id} needs {manifest.backend} with image {manifest.spec.image!r}"
            )
        self.snapshots.check_origin(manifest, backend_version=backend.version, image_digest=image.digest)
        Keyring(manifest.spec.egress, self.read_secret).must_be_here()
        checked = asyncio.ensure_future(asyncio.to_thread(self.snapshots.check_files, manifest))
        checked.add_done_callback(_heard)
        return await self._restore(snapshot_id, backend, manifest.spec, checked, name, keep=keep)

    async def make_ready(self, n: int, spec: SandboxSpec = DEFAULT_SPEC) -> None:
        """Start n kernels with nothing in them, which the next forks and restores of this spec take: these are done in half
        the time. One holds some ten MiB until it is taken or this object is closed. Only gvisor has such a thing."""
        backend = await self.choose(spec)
        if not isinstance(backend, GVisor):
            raise NotSupported(f"{backend.name} has no kernels to be made ready; gvisor has", param="backend")
        trace = await self.recorder.trace_session(spec)
        limit = asyncio.Semaphore(2 * (os.cpu_count() or 1))

        async def one() -> None:
            async with limit:
                record, place, lease = self.books.claim(
                    backend, spec, None, keep=False, parent=None, spare=True
                )
                try:
                    machine = await backend.start_empty(record.id, place, spec, trace)
                except BaseException:
                    lease.release()
                    shutil.rmtree(place, ignore_errors=True)
                    raise
                record.pid, record.started = machine.pid, started_at(machine.pid) or 0
                self.books.write(record, place)
                self._spares.put(Spare(record, place, lease, machine))

        await asyncio.gather(*(one() for _ in range(n)))

    async def _restore(
        self, snapshot_id: str, backend: Backend, spec: SandboxSpec, image: "asyncio.Future[Path]",
        name: str | None, *, keep: bool,
    ) -> Box:  # fmt: skip
        root = find_image(spec.image)
        spare = self._spares.take(spec, root.digest if root else "") if backend.name == "gvisor" else None
        if spare is not None:
            record, place, lease = spare.record, spare.place, spare.lease
            try:
                self.books.adopt(record, place, name, keep=keep, parent=snapshot_id)
            except BaseException:
                self._spares.put(spare)
                raise
        else:
            record, place, lease = self.books.claim(backend, spec, name, keep=keep, parent=snapshot_id)
        box = await self._bring_up(record, place, lease, backend, image, spare.machine if spare else None)
        box.tree = load((await image).parent)
        return box

    async def choose(self, spec: SandboxSpec) -> Backend:
        """The back end for a spec. `auto` tries the strong ones in order; a name is that one or an error."""
        names = AUTO_ORDER if spec.backend == "auto" else (spec.backend,)
        refusals = []
        for name in names:
            backend = self.backends.get(name)
            if backend is None:
                refusals.append(f"{name}: there is no such back end")
                continue
            if spec.backend == "auto" and backend.strength is Strength.EMULATED:
                refusals.append(f"{name}: emulated here, which is no wall; it is had by name only")
                continue
            probe = await cached_probe(backend, self.home)
            if probe.works:
                return backend
            refusals.append(f"{name}: {probe.why_not}" + (f" ({probe.remedy})" if probe.remedy else ""))
        raise BackendUnavailable(
            "no such wall here; " + "; ".join(refusals), param="backend", code="backend_unavailable"
        )

    async def _bring_up(
        self,
        record: BoxRecord,
        place: Path,
        lease: Lease,
        backend: Backend,
        image: "asyncio.Future[Path] | None",
        empty: RunscMachine | None = None,
    ) -> Box:
        box: Box | None = None
        machine: Machine | None = empty
        try:
            intent = self.audit.append(
                "create" if image is None else "restore", chain=record.id, box=record.id, name=record.name,
                backend=backend.name, strength=str(backend.strength), gen=record.generation,
                spec=msgspec.to_builtins(record.spec), snapshot=record.parent_snapshot,
            )  # fmt: skip
            trace = await self.recorder.trace_session(record.spec) if backend.name == "gvisor" else None
            if empty is not None and image is not None:
                await empty.load(image)
                machine = empty
            elif image is None:
                machine = await backend.start(record.id, place, record.spec, trace)
            else:
                machine = await backend.restore(record.id, place, record.spec, image, trace)
            record.pid, record.started = machine.pid, started_at(machine.pid) or 0
            box = self._box(record, place, machine, backend, lease)
            await box.connect(renew=True)
            self.books.write(record, place)
            await asyncio.wrap_future(intent)
        except BaseException as error:
            self.audit.append("create_failed", chain=record.id, error=str(error)[:2000])
            if box is not None:
                await box.abort()
            elif machine is not None:
                await machine.remove()
            lease.release()
            shutil.rmtree(place, ignore_errors=True)
            raise
        self._mine[record.id] = box
        return box

    def _box(self, record: BoxRecord, place: Path, machine: Machine, backend: Backend, lease: Lease) -> Box:
        box = Box(
            record, place, machine, backend, lease, self.audit, self._gone, self._save_snapshot, self._fork
        )  # fmt: skip
        egress = record.spec.egress
        if egress.mode != "none":
            tls = (
                Tls(authority=lambda: self.authority, upstream=self.upstream_context())
                if egress.secrets
                else None
            )
            box.gate = Gate(
                egress, box.note, resolve=self.resolve, check_addresses=self.check_addresses,
                read_secret=self.read_secret, tls=tls,
            )  # fmt: skip
        return box

    def _gone(self, box: Box) -> None:
        self._mine.pop(box.record.id, None)

    # ---- finding

    async def attach(self, name: str) -> Box:
        """Take over a living sandbox by name or id. Raises SandboxBusy while another process owns it."""
        record = self.record(name)
        place = self.home.box(record.id)
        lease = Lease(place)
        try:
            box = await self._take_over(record, place, lease)
        except SandboxLost as lost:
            await self._bury(record, place)
            lease.release()
            hint = f"; restore {record.last_snapshot}" if record.last_snapshot else ""
            raise SandboxLost(
                f"{record.name}: its machine is gone{hint}",
                reason=lost.reason,
                last_snapshot=record.last_snapshot,
            ) from None
        except BaseException:
            lease.release()
            raise
        self.audit.append("attach", chain=record.id, box=record.id, name=record.name, gen=record.generation)
        self._mine[record.id] = box
        return box

    async def _take_over(self, record: BoxRecord, place: Path, lease: Lease) -> Box:
        if not is_alive(record):
            raise SandboxLost("gone", reason="lost")
        backend = self.backends[record.backend]
        if record.strength != str(backend.strength):
            raise BackendUnavailable(
                f"{record.name} is {record.strength} and {record.backend} here is {backend.strength}: "
                "MORTICE_MICROVM is set otherwise than when it was made",
                param="name",
            )
        machine = backend.attach(record.id, place, record.pid)
        record.generation += 1
        box = self._box(record, place, machine, backend, lease)
        machine.unpark()
        paused = record.state == "paused"
        if paused:
            await machine.resume()
        await box.connect(renew=False)
        if paused:
            await box.unquiesce()
        self.books.write(record, place)
        return box

    def list(self) -> Infos:
        """Every sandbox of this home, oldest first; one whose machine is gone is `lost`."""
        return self.books.infos()

    def record(self, name: str) -> BoxRecord:
        """The books of one sandbox, by name or id. Raises SandboxNotFound."""
        return self.books.find(name)

    async def probe(self) -> Probes:
        """Every back end, strongest first."""
        order: Sequence[Probed] = [
            self.backends["microvm"],
            self.backends["microsandbox"],
            self.backends["gvisor"],
            self.wasm,
            self.backends["process"],
        ]
        return [await cached_probe(backend, self.home) for backend in order]

    async def strongest(self) -> str | None:
        """What `auto` takes here, or None."""
        try:
            return (await self.choose(DEFAULT_SPEC)).name
        except BackendUnavailable:
            return None

    async def reconcile(self) -> int:
        """Take away what dead owners left: machines not to be kept, half-made boxes, unpublished snapshots."""
        count = 0
        self.snapshots.sweep()
        for place in list(self.home.boxes.iterdir()):
            try:
                record = msgspec.json.decode((place / "box.json").read_bytes(), type=BoxRecord)
            except FileNotFoundError:
                continue
            if record.keep and record.state in ("ready", "paused", "lost"):
                continue
            try:
                lease = Lease(place)
            except (SandboxBusy, FileNotFoundError):
                continue
            await self._bury(record, place)
            lease.release()
            count += 1
        return count

    async def _bury(self, record: BoxRecord, place: Path) -> None:
        """End what is left of a machine and forget the box; its snapshots and its chain stay. The caller has the lease."""
        backend = self.backends.get(record.backend)
        if backend is not None:
            same = record.pid and started_at(record.pid) == record.started
            await backend.attach(record.id, place, record.pid if same else 0).remove()
        self.audit.append(
            "buried", chain=record.id, box=record.id, name=record.name, last_snapshot=record.last_snapshot
        )
        shutil.rmtree(place, ignore_errors=True)

    async def destroy(self, name: str) -> None:
        """End a sandbox by name, alive or lost."""
        try:
            box = await self.attach(name)
        except SandboxLost:
            return  # attach has buried it
        await box.destroy()

    # ---- state

    async def _save_snapshot(self, box: Box, epoch: int | None, wait_s: float) -> str:
        self._must_snapshot(box)
        snapshot_id = self.snapshots.begin()
        await self._save(box, snapshot_id, epoch, wait_s, cached=False)
        self._tidy()
        return snapshot_id

    def _tidy(self) -> None:
        """Old snapshots go beside other work."""
        if self.retention.is_due:
            self._tidying = asyncio.ensure_future(asyncio.to_thread(self.retention.tidy))

    def _must_snapshot(self, box: Box) -> None:
        if not box.backend.can_snapshot:
            raise NotSupported(
                f"{box.backend.name} cannot save a running machine; gvisor and microvm can", param="backend"
            )
        box.check_lease()

    async def _save(
        self, box: Box, snapshot_id: str, epoch: int | None, wait_s: float, *, cached: bool
    ) -> Path:
        """Save the machine under an id that was begun, and publish it. Returns the folder of the machine's own files."""
        try:
            async with box.saving:
                return await self._save_alone(box, snapshot_id, epoch, wait_s, cached=cached)
        except BaseException:
            self.snapshots.abandon(snapshot_id)
            raise

    async def _save_alone(
        self, box: Box, snapshot_id: str, epoch: int | None, wait_s: float, *, cached: bool
    ) -> Path:
        intent = self.audit.append(
            "snapshot", chain=box.record.id, box=box.record.id, gen=box.record.generation, epoch=epoch
        )
        machine_folder = self.snapshots.machine_folder(snapshot_id, published=False)
        with box.held():
            tree = await box.quiesce(wait_s)
            try:
                started = time.monotonic()
                await box.machine.checkpoint(machine_folder)
                saved_s = time.monotonic() - started
            finally:
                with contextlib.suppress(MorticeError):  # a machine that is gone says so at its next request
                    await box.unquiesce()
        box.note("files", snapshot=snapshot_id, epoch=epoch, trust="agent", **changes(box.tree, tree))
        save(machine_folder.parent, tree)
        seq, head = await asyncio.wrap_future(intent)
        box.check_lease()
        manifest = await asyncio.to_thread(
            self.snapshots.publish, snapshot_id, cached=cached, box=box.record.id, name=box.record.name,
            parent=box.record.last_snapshot or box.record.parent_snapshot, epoch=epoch, backend=box.backend.name,
            backend_version=box.backend.version, image_digest=box.record.image_digest, agent_digest=agent_digest(),
            spec=box.record.spec, audit_chain=box.record.id, audit_seq=seq, audit_head=head,
        )  # fmt: skip
        box.record.last_snapshot = snapshot_id
        box.changed = box.num_running > 0
        box.tree = tree
        self.books.write(box.record, box.place)
        done = self.audit.append(
            "snapshot_committed", chain=box.record.id, box=box.record.id, snapshot=snapshot_id, digest=manifest.digest,
            epoch=epoch, machine_s=round(saved_s, 4), bytes=sum(f.size for f in manifest.files),
        )  # fmt: skip
        await asyncio.wrap_future(done)
        return self.snapshots.machine_folder(snapshot_id, published=True)

    async def _fork(self, box: Box, n: int, names: Names | None, wait_s: float) -> Outcomes:
        """The clones' empty kernels start while the original is being saved; they get its image once it is published."""
        if not 1 <= n <= MAX_FORKS:
            raise RequestError(f"between 1 and {MAX_FORKS} forks at once", param="n")
        if names is not None and len(names) != n:
            raise RequestError(f"{n} forks need {n} names, {len(names)} were given", param="names")
        self._must_snapshot(box)
        snapshot_id = self.snapshots.begin()
        saved = asyncio.ensure_future(self._save(box, snapshot_id, None, wait_s, cached=True))
        limit = asyncio.Semaphore(2 * (os.cpu_count() or 1))

        async def one(name: str | None) -> ForkOutcome:
            async with limit:
                try:
                    clone = await self._restore(
                        snapshot_id, box.backend, box.record.spec, saved, name, keep=box.record.keep
                    )
                    return ForkOutcome(box=clone)
                except (MorticeError, OSError) as error:
                    return ForkOutcome(box=None, error=str(error))

        outcomes = await asyncio.gather(*(one(name) for name in names or repeat(None, n)))
        await saved  # what went wrong with the original is an error of the call, not of each clone
        return list(outcomes)


def _heard(future: "asyncio.Future[Path]") -> None:
    """An error nobody waits for any more, since another came first, is no news."""
    if not future.cancelled():
        future.exception()


__all__ = ["SandboxError", "Sandboxes"]
