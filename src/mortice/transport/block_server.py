"""The serving side of the tcp lane: gives blocks of the pool to peers that prove the token, takes theirs.

One thread accepts, one a connection serves. A peer that breaks the language loses its connection and nothing
else happens; a request that cannot be honoured gets a Verdict and the connection goes on.
"""

import socket
import ssl
import threading
import time

import numpy as np

from mortice.transport import wire
from mortice.transport.base import Pool
from mortice.transport.copy import runs
from mortice.transport.descriptor import block_ids, check_generations, check_landed
from mortice.transport.errors import PeerGone, TransferError
from mortice.transport.hands import lower_priority
from mortice.transport.sealed import SealedLink

MAX_CONNECTIONS = 128


class BlockServer:
    """Serves one pool on `listen` (a numeric address; port 0: any free one) until closed."""

    def __init__(
        self,
        pool: Pool,
        token: str,
        listen: str,
        port: int,
        stall_s: float,
        seal: ssl.SSLContext | None = None,
    ) -> None:
        """`seal`: connections are encrypted. Raises OSError if the address cannot be listened on."""
        self._pool = pool
        self._seal = seal
        self._token = token
        self._stall_s = stall_s
        family = socket.AF_INET6 if ":" in listen else socket.AF_INET
        self._socket = socket.create_server((listen, port), family=family, backlog=64)
        bound = self._socket.getsockname()[1]
        self.address = f"[{listen}]:{bound}" if ":" in listen else f"{listen}:{bound}"
        self._lock = threading.Lock()
        self._serving: dict[threading.Thread, wire.Link] = {}
        self._closing = False
        self._acceptor = threading.Thread(target=self._accept, name="kv-accept", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Stop listening and cut all connections; returns when no thread touches the pool any more.
        Idempotent."""
        with self._lock:
            self._closing = True
            serving = dict(self._serving)
        if self._socket.fileno() >= 0:
            _wake(self._socket)
        for link in serving.values():
            link.interrupt()
        self._acceptor.join()
        self._socket.close()
        for thread in serving:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                if self._closing:
                    return
                time.sleep(0.05)  # out of file descriptors: some connection will end
                continue
            with self._lock:
                if self._closing or len(self._serving) >= MAX_CONNECTIONS:
                    connection.close()
                    continue
                try:
                    link = self._link(connection)
                except OSError:  # it is gone already
                    connection.close()
                    continue
                thread = threading.Thread(target=self._serve, args=(link,), name="kv-serve", daemon=True)
                self._serving[thread] = link
                thread.start()

    def _link(self, connection: socket.socket) -> wire.Link:
        if self._seal is None:
            return wire.Link(connection, self._stall_s)
        return SealedLink(connection, self._stall_s, self._seal)

    def _serve(self, link: wire.Link) -> None:
        try:
            lower_priority()
            self._admit(link)
            while link.wait():
                self._answer(link, link.receive(wire.ASK))
        except TransferError:
            pass  # the peer left, stalled, or spoke another language; it learns so from the closed connection
        finally:
            with self._lock:
                self._serving.pop(threading.current_thread(), None)
            link.close()

    def _admit(self, link: wire.Link) -> None:
        link.handshake()
        nonce = wire.fresh_nonce()
        link.send(wire.Challenge(wire.VERSION, nonce))
        shown = link.receive(wire.CREDENTIALS, wire.MAX_HANDSHAKE)
        if not wire.proves(shown.proof, self._token, "client", nonce):
            link.send(wire.Verdict("wrong token"))
            raise TransferError("wrong token")
        link.send(wire.Verdict(proof=wire.prove(self._token, "server", shown.nonce)))

    def _answer(self, link: wire.Link, ask: wire.Ask) -> None:
        try:
            if isinstance(ask, wire.Probe):
                self._send_zeros(link, ask.num_bytes)
            elif isinstance(ask, wire.Read):
                self._give(link, ask)
            else:
                self._take(link, ask)
        except PeerGone:
            raise
        except TransferError as refusal:
            link.send(wire.Verdict(str(refusal)))

    def _give(self, link: wire.Link, ask: wire.Read) -> None:
        ids, generations = self._checked(ask)
        check_generations(self._pool.generations, ids, generations, "before the read")
        link.send(wire.Verdict())
        blocks = self._pool.blocks
        for first, _, count in runs(ids, ids, wire.chunk_blocks(ask.block_bytes)):
            link.send_bytes(wire.rows(blocks, first, count))
        check_generations(self._pool.generations, ids, generations, "during the read")
        link.send(wire.Verdict())

    def _take(self, link: wire.Link, ask: wire.Write) -> None:
        ids, generations = self._checked(ask)
        with self._pool.landing.claim(ids.tolist()):
            check_generations(self._pool.generations, ids, generations, "before the write")
            link.send(wire.Verdict())
            self._land(link, ids, generations)
            sent = link.receive(wire.SENT)
            check_generations(self._pool.generations, ids, generations, "during the write")
            expected = wire.unpack_numbers(sent.checksums).tolist()
            if sent.mode != "off" and len(expected) != len(ids):
                raise TransferError(f"{len(expected)} checksums for {len(ids)} blocks")
            check_landed(self._pool.blocks, ids, expected, sent.mode)
        link.send(wire.Verdict())

    def _land(self, link: wire.Link, ids: np.ndarray, generations: np.ndarray) -> None:
        """Receive into the blocks. Blocks that were given to other content meanwhile are not touched any
        more: the rest of the payload is thrown away, so that the peer can hear the verdict."""
        blocks, waste = self._pool.blocks, None
        for first, _, count in runs(ids, ids, wire.chunk_blocks(blocks.shape[1])):
            if waste is None and not np.array_equal(self._pool.generations[ids], generations):
                waste = np.empty((wire.chunk_blocks(blocks.shape[1]), blocks.shape[1]), np.uint8)
            target = wire.rows(blocks, first, count) if waste is None else wire.rows(waste, 0, count)
            link.receive_into(target)

    def _checked(self, ask: wire.Blocks) -> tuple[np.ndarray, np.ndarray]:
        mine = self._pool.address
        if ask.pool_id != mine.pool_id:
            raise TransferError(f"pool {ask.pool_id[:8]} is not served here: its owner was restarted")
        if ask.layout_digest != mine.layout_digest or ask.block_bytes != mine.block_bytes:
            raise TransferError("block layouts differ")
        ids = wire.unpack_numbers(ask.ids)
        generations = wire.unpack_numbers(ask.generations)
        if len(ids) != len(generations):
            raise TransferError(f"{len(ids)} blocks with {len(generations)} generations")
        if ids.size and int(ids.max()) >= mine.num_blocks:
            raise TransferError(f"asked-for block ids reach outside the pool of {mine.num_blocks} blocks")
        return block_ids(ids.astype(np.int64), mine.num_blocks, "asked-for"), generations

    def _send_zeros(self, link: wire.Link, num_bytes: int) -> None:
        if not 0 <= num_bytes <= wire.MAX_PROBE:
            raise TransferError(f"a probe moves up to {wire.MAX_PROBE} bytes")
        link.send(wire.Verdict())
        link.send_bytes(memoryview(bytes(num_bytes)))


def _wake(listening: socket.socket) -> None:
    """Make a thread that waits in accept() return."""
    try:
        listening.shutdown(socket.SHUT_RDWR)
    except (
        OSError
    ):  # some systems refuse to shut down a socket that only listens: a connection wakes it as well
        socket.create_connection(listening.getsockname()[:2], timeout=1).close()
