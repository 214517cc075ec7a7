"""Which pool and which transport a worker gets: the one place where "auto" is resolved."""

from collections.abc import Callable, Sequence
from typing import Literal

from mortice.specs.errors import RequestError
from mortice.specs.kv import ChecksumMode, KVDescriptor, KVLayout, PoolAddress
from mortice.transport import segment
from mortice.transport.base import KVTransport, Pool, TransferResult
from mortice.transport.errors import TransferError
from mortice.transport.lanes import silent
from mortice.transport.pool import PrivatePool, SharedPool
from mortice.transport.sealed import Encryption
from mortice.transport.shm import ShmTransport
from mortice.transport.tcp import TcpTransport

Kind = Literal["auto", "shm", "tcp", "nixl"]


def open_pool(
    kind: Kind,
    layout: KVLayout,
    num_blocks: int,
    *,
    prefix: str = "mortice",
    checksum: ChecksumMode = "sampled",
    report: Callable[[str], None] = silent,
) -> Pool:
    """The pool that a transport of this kind can serve: shared for shm, private for tcp and nixl.

    auto: shared where the host has the shared memory for it; where not, private, and `report` says why. With
    "shm" the same lack is a RequestError.
    """
    if kind in ("tcp", "nixl"):
        return PrivatePool(layout, num_blocks, checksum=checksum)
    try:
        return SharedPool(layout, num_blocks, prefix=prefix, checksum=checksum)
    except RequestError as lack:
        if kind == "shm" or lack.param not in ("limits.kv_bytes", "transfer.transport") or num_blocks < 1:
            raise
        report(f"no shared block pool, peers on this host will use tcp: {lack.message}")
        return PrivatePool(layout, num_blocks, checksum=checksum)


def open_transport(
    kind: Kind,
    pool: Pool,
    *,
    token: str = "",
    listen: str = "127.0.0.1",
    port: int = 0,
    verify: bool = True,
    encrypt: Encryption = "auto",
    report: Callable[[str], None] = silent,
) -> KVTransport:
    """Open the transport and advertise it in `pool.address`. `report` gets one line a peer at first contact.

    token: shared by all workers of a deployment; needed by auto and tcp. listen, port: of the block server
    (auto, tcp). verify: whether checksums offered by descriptors are compared. encrypt: of tcp; auto: beyond
    this host. Raises RequestError for what cannot be opened.
    """
    if kind == "shm":
        if not pool.address.shm_name:
            raise RequestError("the shm transport needs a pool in shared memory", param="transfer.transport")
        return ShmTransport(pool, verify=verify, report=report)
    if kind == "nixl":
        from mortice.transport.nixl import NixlTransport  # an extra: only who asks for it needs it

        return NixlTransport(pool, verify=verify, report=report)
    tcp = TcpTransport(
        pool, token=token, listen=listen, port=port, verify=verify, encrypt=encrypt, report=report
    )
    if kind == "tcp":
        return tcp
    return AutoTransport(ShmTransport(pool, verify=verify, report=report), tcp, report)


class AutoTransport:
    """Shared memory to peers whose segment this process can open, TCP to all others (see KVTransport)."""

    name = "auto"

    def __init__(self, shm: ShmTransport, tcp: TcpTransport, report: Callable[[str], None] = silent) -> None:
        self._shm = shm
        self._tcp = tcp
        self._report = report
        self._host = segment.host_identity()
        self._route: dict[str, ShmTransport | TcpTransport] = {}  # by pool id
        self._fallbacks: dict[str, str] = {}

    def read(
        self, source: KVDescriptor, skip: int, into: Sequence[int], done: Callable[[TransferResult], None]
    ) -> None:
        self._to(source.pool).read(source, skip, into, done)

    def write(
        self, local: Sequence[int], target: KVDescriptor, skip: int, done: Callable[[TransferResult], None]
    ) -> None:
        self._to(target.pool).write(local, target, skip, done)

    def forget(self, pool_id: str) -> None:
        self._shm.forget(pool_id)
        self._tcp.forget(pool_id)
        self._route.pop(pool_id, None)
        self._fallbacks.pop(pool_id, None)

    def lanes(self) -> list[str]:
        return [*self._fallbacks.values(), *self._shm.lanes(), *self._tcp.lanes()]

    def close(self) -> None:
        self._shm.close()
        self._tcp.close()

    def _to(self, peer: PoolAddress) -> ShmTransport | TcpTransport:
        if peer.pool_id not in self._route:
            self._route[peer.pool_id] = self._shm if self._shares_memory(peer) else self._tcp
        return self._route[peer.pool_id]

    def _shares_memory(self, peer: PoolAddress) -> bool:
        """Whether the peer's segment can be opened; a peer on this host with whom it cannot is spoken of."""
        if not peer.shm_name or not self._host or peer.host != self._host:
            return False
        try:
            found = segment.identify(peer.shm_name)
        except TransferError as error:
            found, reason = "", str(error)
        else:
            reason = f"{peer.shm_name} holds another pool"
        if found == peer.pool_id:
            return True
        line = f"pool {peer.pool_id[:8]}: on this host, but falls back to tcp: {reason}"
        self._fallbacks[peer.pool_id] = line
        self._report(line)
        return False
