"""Why a transfer did not happen. Stays inside the transport: callers see `TransferResult.error`."""


class TransferError(Exception):
    """One line for the log and the requester: the peer, the descriptor or the bytes were not what they must
    be."""


class Corrupt(TransferError):
    """Bytes landed that are not those that were described: so many blocks of them."""

    def __init__(self, message: str, num_blocks: int) -> None:
        super().__init__(message)
        self.num_blocks = num_blocks


class PeerGone(TransferError):
    """The peer closed, reset or does not answer."""
