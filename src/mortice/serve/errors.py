"""From our errors to what HTTP clients see: `{"error": {"message", "type", "param", "code"}}` and a
status.
"""

import msgspec

from mortice.specs.errors import MorticeError, Overloaded

Headers = list[tuple[bytes, bytes]]

CLIENT_CLOSED = 499  # for our log only: nobody is there to read it


class HttpError(MorticeError):
    """An error of the edge itself, with a status of its own (401, 404, 405, 408, 413)."""

    def __init__(
        self, status: int, kind: str, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status
        self.kind = kind


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """Body of every answer that is not 2xx."""

    error: ErrorDetail


def error_body(error: BaseException) -> ErrorBody:
    """What a user may read of an error. Of a fault of our own only that it happened."""
    if isinstance(error, MorticeError):
        return ErrorBody(ErrorDetail(error.message, error.kind, error.param, error.code))
    return ErrorBody(
        ErrorDetail("the server failed; the log says why", "server_error", None, "internal_error")
    )


def error_status(error: BaseException) -> int:
    return error.status if isinstance(error, MorticeError) else 500


def error_headers(error: BaseException) -> Headers:
    if isinstance(error, Overloaded):
        return [(b"retry-after", str(error.retry_after_s).encode())]
    status = error_status(error)
    if status == 401:
        return [(b"www-authenticate", b"Bearer")]
    if status in (408, 413):  # the rest of the body will not be read
        return [(b"connection", b"close")]
    if status == 503:
        return [(b"retry-after", b"5")]
    return []
