"""Transfers by NIXL (RDMA, UCX): one-sided reads and writes between registered pools. An extra:
`mortice[nixl]`.

Peers' generation counters are registered memory too: they are read over the same lane before and after the
blocks. UCX runs in its "peer" error mode, the one that reports a peer's death on every lane; its price is
that the side which is read or written must make progress too. One thread a transport does both: it alone
touches the agent.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from mortice.specs.errors import RequestError
from mortice.specs.kv import KVDescriptor, PoolAddress
from mortice.transport.base import Pool, TransferResult
from mortice.transport.checksum import checksums
from mortice.transport.copy import runs
from mortice.transport.descriptor import Plan, check_counters, check_landed, plan
from mortice.transport.errors import PeerGone
from mortice.transport.hands import Hands
from mortice.transport.lanes import Lanes, silent

IDLE_S = 0.0005  # between looks at the network when idle: what a peer's request may wait for us
POLL_S = 0.00002  # between looks at a request under way
SCRATCH_BLOCKS = 16  # read back at a time to verify a write


class Advert(msgspec.Struct, frozen=True, array_like=True):
    """What `PoolAddress.nixl` carries."""

    metadata: bytes
    blocks_at: int  # address in the owner's process
    generations_at: int


class NixlTransport:
    """Blocks between `pool` and peers' pools by NIXL (see KVTransport).

    `backend_options` override the backend's own (strings, see the UCX plugin). `stall_s`: longest time one
    request to the network may take. Raises RequestError where the package or its backend is missing.
    """

    name = "nixl"

    def __init__(
        self,
        pool: Pool,
        *,
        verify: bool = True,
        backend: str = "UCX",
        backend_options: dict[str, str] | None = None,
        stall_s: float = 10.0,
        report: Callable[[str], None] = silent,
    ) -> None:
        self._pool = pool
        self._verify = verify
        self._stall_s = stall_s
        self._lanes = Lanes(report)
        self._backend = backend
        block_bytes = pool.address.block_bytes
        self._scratch = np.zeros((SCRATCH_BLOCKS, block_bytes), np.uint8)
        self._counters = np.zeros(pool.address.num_blocks, np.uint64)
        self._agent = _open_agent(pool.address.pool_id, backend, backend_options or {})
        mine = (pool.blocks, pool.generations, self._scratch, self._counters)
        self._registered = self._agent.register_memory(
            [(array.ctypes.data, array.nbytes, 0, "") for array in mine], "DRAM"
        )
        metadata = self._agent.get_agent_metadata()
        advert = Advert(metadata, pool.blocks.ctypes.data, pool.generations.ctypes.data)
        pool.address = msgspec.structs.replace(pool.address, nixl=msgspec.msgpack.encode(advert))
        self._peers: dict[str, tuple[str, Advert]] = {}
        self._forgotten: set[str] = set()
        self._hands = Hands("kv-nixl", 1, idle=self._agent.get_new_notifs, idle_s=IDLE_S)

    def read(
        self, source: KVDescriptor, skip: int, into: Sequence[int], done: Callable[[TransferResult], None]
    ) -> None:
        self._hands.submit(source.lease_id, lambda: self._read(source, skip, into), done)

    def write(
        self, local: Sequence[int], target: KVDescriptor, skip: int, done: Callable[[TransferResult], None]
    ) -> None:
        self._hands.submit(target.lease_id, lambda: self._write(local, target, skip), done)

    def forget(self, pool_id: str) -> None:
        self._forgotten.add(pool_id)
        self._lanes.forget(pool_id)

    def lanes(self) -> list[str]:
        return self._lanes.lines()

    def close(self) -> None:
        self._hands.close()
        for agent, _ in self._peers.values():
            self._agent.remove_remote_agent(agent)
        self._peers.clear()
        if self._registered is not None:
            self._agent.deregister_memory(self._registered)
            self._registered = None

    def _read(self, source: KVDescriptor, skip: int, into: Sequence[int]) -> int:
        todo = plan(self._pool, source, skip, into)
        if not todo.num_bytes:
            return 0
        with self._pool.landing.claim(todo.local.tolist()):
            advert = self._meet(todo.peer)
            self._check_generations(todo, advert, "before the read")
            self._move("READ", todo, advert)
            self._check_generations(todo, advert, "during the read")
            if self._verify:
                check_landed(self._pool.blocks, todo.local, todo.checksums, source.pool.checksum)
        return todo.num_bytes

    def _write(self, local: Sequence[int], target: KVDescriptor, skip: int) -> int:
        todo = plan(self._pool, target, skip, local)
        if not todo.num_bytes:
            return 0
        advert = self._meet(todo.peer)
        self._check_generations(todo, advert, "before the write")
        self._move("WRITE", todo, advert)
        if self._verify and self._pool.address.checksum != "off":
            self._read_back(todo, advert)
        self._check_generations(todo, advert, "during the write")
        return todo.num_bytes

    def _move(self, verb: str, todo: Plan, advert: Advert) -> None:
        size = todo.peer.block_bytes
        # Requests pair the rows of both sides one by one: a run must be one on both.
        pairs = runs(todo.remote, todo.local, len(todo.remote))
        here = _regions(self._pool.blocks.ctypes.data, ((to, count) for _, to, count in pairs), size)
        there = _regions(advert.blocks_at, ((first, count) for first, _, count in pairs), size)
        self._request(verb, todo.peer, here, there)

    def _read_back(self, todo: Plan, advert: Advert) -> None:
        """Compare what lies in the peer's blocks with what was sent: nobody else will."""
        size, mode = todo.peer.block_bytes, self._pool.address.checksum
        for start in range(0, len(todo.remote), SCRATCH_BLOCKS):
            remote = todo.remote[start : start + SCRATCH_BLOCKS]
            slots = np.arange(len(remote))
            here = _regions(self._scratch.ctypes.data, ((slot, 1) for slot in slots.tolist()), size)
            there = _regions(advert.blocks_at, ((block, 1) for block in remote.tolist()), size)
            self._request("READ", todo.peer, here, there)
            sent = checksums(self._pool.blocks, todo.local[start : start + SCRATCH_BLOCKS].tolist(), mode)
            check_landed(self._scratch, slots, sent, mode)

    def _check_generations(self, todo: Plan, advert: Advert, when: str) -> None:
        """Fetch the counters of the peer's blocks (those between them too: one request) and compare."""
        window = self._counters.size
        for start in range(int(todo.remote.min()), int(todo.remote.max()) + 1, window):
            inside = (todo.remote >= start) & (todo.remote < start + window)
            if not inside.any():
                continue
            ids = todo.remote[inside] - start
            count = int(ids.max()) + 1
            here = _regions(self._counters.ctypes.data, [(0, count)], 8)
            there = _regions(advert.generations_at, [(start, count)], 8)
            self._request("READ", todo.peer, here, there)
            check_counters(self._counters[ids], todo.remote[inside], todo.generations[inside], when)

    def _request(self, verb: str, peer: PoolAddress, here: np.ndarray, there: np.ndarray) -> None:
        """One request to the network, waited for. Raises PeerGone if it fails; the peer is then met anew."""
        agent = self._agent
        try:
            handle = agent.initialize_xfer(
                verb,
                agent.get_xfer_descs(here, "DRAM"),
                agent.get_xfer_descs(there, "DRAM"),
                self._name(peer),
            )
            try:
                state, deadline = agent.transfer(handle), time.monotonic() + self._stall_s
                while state == "PROC":
                    self._hands.pause()
                    if peer.pool_id in self._forgotten:
                        raise PeerGone("the peer is gone")
                    if time.monotonic() > deadline:
                        raise PeerGone(f"no answer from the peer in {self._stall_s:g} s")
                    time.sleep(POLL_S)
                    state = agent.check_xfer_state(handle)
                if state != "DONE":
                    raise PeerGone(f"the network reports {state}")
            finally:
                agent.release_xfer_handle(handle)
        except PeerGone:
            self._unmeet(peer)
            raise
        except Exception as error:  # the package raises a class of its own for each condition
            self._unmeet(peer)
            raise PeerGone(f"{type(error).__name__}: {error}") from error

    def _name(self, peer: PoolAddress) -> str:
        return self._peers[peer.pool_id][0]

    def _meet(self, peer: PoolAddress) -> Advert:
        if peer.pool_id in self._forgotten:
            raise PeerGone("the peer is gone")
        if peer.pool_id not in self._peers:
            try:
                advert = msgspec.msgpack.decode(peer.nixl, type=Advert)
                name = self._agent.add_remote_agent(advert.metadata)
            except Exception as error:  # no advert, or one that the package cannot use
                raise PeerGone(f"pool {peer.pool_id[:8]} cannot be reached by nixl: {error}") from error
            self._peers[peer.pool_id] = (name.decode() if isinstance(name, bytes) else name, advert)
        advert = self._peers[peer.pool_id][1]
        self._lanes.meet(peer, f"nixl {self._backend}", lambda: self._probe(peer, advert))
        return advert

    def _probe(self, peer: PoolAddress, advert: Advert) -> tuple[int, float]:
        count = min(SCRATCH_BLOCKS, peer.num_blocks)
        here = _regions(self._scratch.ctypes.data, [(0, count)], peer.block_bytes)
        there = _regions(advert.blocks_at, [(0, count)], peer.block_bytes)
        self._request("READ", peer, here, there)  # the first request also connects
        begun = time.perf_counter()
        self._request("READ", peer, here, there)
        return count * peer.block_bytes, time.perf_counter() - begun

    def _unmeet(self, peer: PoolAddress) -> None:
        known = self._peers.pop(peer.pool_id, None)
        if known is not None:
            self._agent.remove_remote_agent(known[0])


def _regions(base: int, spans: Iterable[tuple[int, int]], size: int) -> np.ndarray:
    """Rows (address, bytes, device 0) of spans (first block, count) of `size`-byte blocks."""
    return np.array([(base + first * size, count * size, 0) for first, count in spans], np.uint64)


def _open_agent(name: str, backend: str, overrides: dict[str, str]) -> Any:
    try:
        from nixl_cu13 import nixl_agent, nixl_agent_config
    except ImportError as error:
        raise RequestError(
            f"the nixl transport needs its package: pip install 'mortice[nixl]' ({error})",
            param="transfer.transport",
        ) from error
    agent = nixl_agent(name, nixl_agent_config(enable_prog_thread=False, backends=[]))
    try:
        options = dict(agent.get_plugin_params(backend))
        if backend == "UCX":
            options["ucx_error_handling_mode"] = "peer"
        agent.create_backend(backend, options | overrides)
    except Exception as error:  # the package raises a class of its own for each condition
        raise RequestError(
            f"nixl cannot open its backend {backend}: {error}", param="transfer.transport"
        ) from error
    return agent
