"""One error type per boundary: the user's mistake, the server's load, the server's state, our own fault."""


class MorticeError(Exception):
    """Base of every error with a line fit for a user. `status` is the HTTP status it becomes at the edge."""

    status = 500
    kind = "server_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class RequestError(MorticeError):
    """The request, file or option is wrong. `param` names the field; the message says how to mend it."""

    status = 400
    kind = "invalid_request_error"


class NotFound(RequestError):
    """The named model, response or adapter does not exist."""

    status = 404


class WrongState(MorticeError):
    """The request is right but the engine is in a state (asleep, updating) that cannot serve it."""

    status = 409
    kind = "conflict_error"


class Overloaded(MorticeError):
    """The queue is full or a limit is reached; the client should come back after `retry_after_s`."""

    status = 429
    kind = "rate_limit_error"

    def __init__(self, message: str, *, retry_after_s: int = 1, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class Unavailable(MorticeError):
    """No worker can take the request: the server is draining, or every worker of a needed role is gone."""

    status = 503
    kind = "service_unavailable_error"


class EngineError(MorticeError):
    """A worker failed while it served the request. Never the user's fault."""
