"""Transfers over TCP: out of one pool's memory into the socket, out of the socket into the other's. No buffer
between, but for encryption where the way leads beyond the host."""

import ipaddress
import socket
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from mortice.specs.errors import RequestError
from mortice.specs.kv import KVDescriptor, PoolAddress
from mortice.transport import wire
from mortice.transport.base import Pool, TransferResult
from mortice.transport.block_server import BlockServer
from mortice.transport.checksum import checksums
from mortice.transport.copy import runs
from mortice.transport.descriptor import Plan, check_landed, plan
from mortice.transport.errors import PeerGone, TransferError
from mortice.transport.hands import Hands
from mortice.transport.lanes import Lanes, silent
from mortice.transport.sealed import Encryption, SealedLink, is_sealed, seal


class TcpTransport:
    """Blocks between `pool` and peers' pools by TCP (see KVTransport), and the server of `pool`'s own blocks.

    `token`: the secret that all workers of a deployment share. `listen`: numeric address of the block server,
    which is also where peers are told to come; `port` 0 takes any free one. `stall_s`: a transfer ends with
    an error when no byte moves for this long; a peer whose connection is reset is noticed at once. `verify`
    False leaves out checksums. `encrypt`: see sealed.is_sealed; the same for all workers of a deployment.
    """

    name = "tcp"

    def __init__(
        self,
        pool: Pool,
        *,
        token: str,
        listen: str = "127.0.0.1",
        port: int = 0,
        verify: bool = True,
        encrypt: Encryption = "auto",
        num_threads: int = 2,
        stall_s: float = 5.0,
        report: Callable[[str], None] = silent,
    ) -> None:
        _check_address(listen)
        if not token:
            raise RequestError("the tcp transport needs a token that all workers share", param="token")
        self._pool = pool
        self._verify = verify
        self._lanes = Lanes(report)
        self._encrypt = encrypt
        self._calls = _Calls(token, stall_s, encrypt)
        seal_of_server = seal(token, "server") if is_sealed(encrypt, listen) else None
        try:
            self._server = BlockServer(pool, token, listen, port, stall_s, seal_of_server)
        except OSError as error:
            raise RequestError(
                f"cannot listen on {listen} port {port}: {error.strerror}", param="transfer.listen"
            ) from error
        pool.address = msgspec.structs.replace(pool.address, tcp=self._server.address)
        self._hands = Hands("kv-tcp", num_threads)

    def read(
        self, source: KVDescriptor, skip: int, into: Sequence[int], done: Callable[[TransferResult], None]
    ) -> None:
        self._hands.submit(source.lease_id, lambda: self._read(source, skip, into), done)

    def write(
        self, local: Sequence[int], target: KVDescriptor, skip: int, done: Callable[[TransferResult], None]
    ) -> None:
        self._hands.submit(target.lease_id, lambda: self._write(local, target, skip), done)

    def forget(self, pool_id: str) -> None:
        self._calls.forget(pool_id)
        self._lanes.forget(pool_id)

    def lanes(self) -> list[str]:
        return self._lanes.lines()

    def close(self) -> None:
        self._hands.stop()
        self._calls.close()
        self._hands.close()
        self._server.close()

    def _read(self, source: KVDescriptor, skip: int, into: Sequence[int]) -> int:
        todo = plan(self._pool, source, skip, into)
        if not todo.num_bytes:
            return 0
        with self._pool.landing.claim(todo.local.tolist()):
            self._meet(todo.peer)
            with self._calls.to(todo.peer, wire.Read(*_named(todo))) as link:
                blocks = self._pool.blocks
                for first, _, count in runs(todo.local, todo.local, wire.chunk_blocks(blocks.shape[1])):
                    link.receive_into(wire.rows(blocks, first, count))
                _accept(link)
            if self._verify:
                check_landed(self._pool.blocks, todo.local, todo.checksums, todo.peer.checksum)
        return todo.num_bytes

    def _write(self, local: Sequence[int], target: KVDescriptor, skip: int) -> int:
        todo = plan(self._pool, target, skip, local)
        if not todo.num_bytes:
            return 0
        self._meet(todo.peer)
        mode = self._pool.address.checksum if self._verify else "off"
        with self._calls.to(todo.peer, wire.Write(*_named(todo))) as link:
            blocks = self._pool.blocks
            for first, _, count in runs(todo.local, todo.local, wire.chunk_blocks(blocks.shape[1])):
                link.send_bytes(wire.rows(blocks, first, count))
            digests = checksums(blocks, todo.local.tolist(), mode) if mode != "off" else []
            link.send(wire.Sent(mode, wire.pack_numbers(np.array(digests, np.uint64))))
            _accept(link)
        return todo.num_bytes

    def _meet(self, peer: PoolAddress) -> None:
        def probe() -> tuple[int, float]:
            landing = np.ones(wire.MAX_PROBE, np.uint8)
            with self._calls.to(peer, wire.Probe(landing.size)) as link:
                begun = time.perf_counter()
                link.receive_into(landing.data)
                return landing.size, time.perf_counter() - begun

        how = ", encrypted" if is_sealed(self._encrypt, _host(peer.tcp)) else ""
        self._lanes.meet(peer, f"{self.name} to {peer.tcp}{how}", probe)


class _Calls:
    """Connections to peers: kept while idle, one a call while in use, dropped after any mishap."""

    def __init__(self, token: str, stall_s: float, encrypt: Encryption) -> None:
        self._token = token
        self._encrypt = encrypt
        self._seal: ssl.SSLContext | None = None  # made for the first peer that needs it
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._idle: defaultdict[str, list[wire.Link]] = defaultdict(list)  # by pool id
        self._busy: dict[wire.Link, str] = {}
        self._forgotten: set[str] = set()
        self._closed = False

    def to(self, peer: PoolAddress, ask: wire.Ask) -> "_Call":
        """A connection on which the peer has said yes to `ask`. Raises TransferError with its reason if it
        said no, PeerGone if it cannot be asked. An idle connection that broke meanwhile is replaced once."""
        link = self._take_idle(peer.pool_id)
        if link is not None:
            try:
                return _Call(self, peer.pool_id, link, ask)
            except PeerGone:
                self._check(peer.pool_id)
        return _Call(self, peer.pool_id, self._connect(peer), ask)

    def keep(self, pool_id: str, link: wire.Link) -> None:
        """The call is over and the connection in order."""
        with self._lock:
            del self._busy[link]
            if not self._closed and pool_id not in self._forgotten:
                self._idle[pool_id].append(link)
                return
        link.close()

    def drop(self, link: wire.Link) -> None:
        """The call failed: what the connection would say next is unknown."""
        with self._lock:
            del self._busy[link]
        link.close()

    def forget(self, pool_id: str) -> None:
        with self._lock:
            self._forgotten.add(pool_id)
            idle = self._idle.pop(pool_id, [])
            busy = [link for link, peer in self._busy.items() if peer == pool_id]
        self._end(idle, busy)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle = [link for links in self._idle.values() for link in links]
            self._idle.clear()
            busy = list(self._busy)
        self._end(idle, busy)

    def _end(self, idle: list[wire.Link], busy: list[wire.Link]) -> None:
        for link in idle:
            link.close()
        for link in busy:
            link.interrupt()  # the thread that uses it closes it

    def _check(self, pool_id: str) -> None:
        if self._closed:
            raise PeerGone("the transport is closed")
        if pool_id in self._forgotten:
            raise PeerGone("the peer is gone")

    def _take_idle(self, pool_id: str) -> wire.Link | None:
        with self._lock:
            self._check(pool_id)
            if not self._idle[pool_id]:
                return None
            link = self._idle[pool_id].pop()
            self._busy[link] = pool_id
            return link

    def _connect(self, peer: PoolAddress) -> wire.Link:
        host, port = _host(peer.tcp), peer.tcp.rpartition(":")[2]
        if not host or not port.isdigit():
            raise PeerGone(f"pool {peer.pool_id[:8]} is not served over tcp")
        try:
            sock = socket.create_connection((host, int(port)), timeout=self._stall_s)
            link = self._link(sock, host)
        except OSError as error:
            raise PeerGone(f"cannot reach {peer.tcp}: {error.strerror or error}") from error
        with self._lock:
            self._busy[link] = peer.pool_id
        try:
            self._check(peer.pool_id)
            self._introduce(link)
        except BaseException:
            self.drop(link)
            raise
        return link

    def _link(self, sock: socket.socket, host: str) -> wire.Link:
        if not is_sealed(self._encrypt, host):
            return wire.Link(sock, self._stall_s)
        with self._lock:
            if self._seal is None:
                self._seal = seal(self._token, "client")
        return SealedLink(sock, self._stall_s, self._seal)

    def _introduce(self, link: wire.Link) -> None:
        link.handshake()
        challenge = link.receive(wire.CHALLENGE, wire.MAX_HANDSHAKE)
        if challenge.version != wire.VERSION:
            raise TransferError(f"the peer speaks version {challenge.version}, we speak {wire.VERSION}")
        nonce = wire.fresh_nonce()
        link.send(wire.Credentials(wire.prove(self._token, "client", challenge.nonce), nonce))
        verdict = link.receive(wire.VERDICT, wire.MAX_HANDSHAKE)
        if verdict.error is not None:
            raise TransferError(f"the peer refused us: {verdict.error}")
        if not wire.proves(verdict.proof, self._token, "server", nonce):
            raise TransferError("the peer does not know the token")


class _Call:
    """A request that was granted; inside the `with`, its payload is on the link."""

    def __init__(self, calls: _Calls, pool_id: str, link: wire.Link, ask: wire.Ask) -> None:
        self._calls, self._pool_id, self._link = calls, pool_id, link
        try:
            link.send(ask)
            verdict = link.receive(wire.VERDICT)
        except BaseException:
            calls.drop(link)
            raise
        if verdict.error is not None:
            calls.keep(pool_id, link)
            raise TransferError(verdict.error)

    def __enter__(self) -> wire.Link:
        return self._link

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._calls.keep(self._pool_id, self._link)
        else:
            self._calls.drop(self._link)


def _named(todo: Plan) -> tuple[str, str, int, bytes, bytes]:
    peer = todo.peer
    ids, generations = wire.pack_numbers(todo.remote), wire.pack_numbers(todo.generations)
    return peer.pool_id, peer.layout_digest, peer.block_bytes, ids, generations


def _accept(link: wire.Link) -> None:
    """The last verdict of an exchange."""
    verdict = link.receive(wire.VERDICT)
    if verdict.error is not None:
        raise TransferError(verdict.error)


def _host(address: str) -> str:
    """The numeric address without its port."""
    return address.rpartition(":")[0].strip("[]")


def _check_address(listen: str) -> None:
    try:
        address = ipaddress.ip_address(listen)
    except ValueError as error:
        raise RequestError(f"{listen!r} is not a numeric address", param="transfer.listen") from error
    if address.is_unspecified:
        raise RequestError(
            f"{listen} is no address that peers can reach: name the one of the interface they share",
            param="transfer.listen",
        )
