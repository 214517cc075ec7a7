"""Why a transfer did not happen. Stays inside the transport: callers see `TransferResult.error`."""


class TransferError(Exception):
    """One line for the log and the requester: the peer, the descriptor or the bytes were not what they must
    be."""


class PeerGone(TransferError):
    """The peer closed, reset or does not answer."""
