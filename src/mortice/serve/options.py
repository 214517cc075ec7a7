"""What the edge is told when it starts."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from mortice.specs.deployment import Admission, Deployment
from mortice.specs.errors import RequestError


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A whole HTML document without scripts that another room draws, for those who may use the admin routes. `draw` gets
    the parameters of the path; NotFound becomes a 404. The dashboard links to pages with a title.
    """

    path: str
    draw: Callable[[dict[str, str]], Awaitable[str]]
    title: str = ""


class ServeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and secrets of the edge. `deployment` is only shown by GET /admin/deployment."""

    admission: Admission = Admission()
    api_keys: tuple[str, ...] = ()  # none: everybody may ask
    admin_token: str | None = (
        None  # None: admin routes answer loopback clients only; else only who has the token
    )
    store: str | None = ":memory:"  # SQLite file of the Responses API; None: nothing is stored
    keepalive_s: float = 15.0  # a stream that says nothing for so long sends a comment
    stall_s: float = 30.0  # a client that takes no byte for so long loses its request
    max_pending_tokens: int = 4096  # a stream whose client is so far behind is ended
    max_stops: int = 4
    deployment: Deployment | None = None
    trace_endpoint: str | None = None  # OTLP over HTTP
    pages: tuple[Page, ...] = ()  # beside the dashboard


def read_api_keys(path: str | None, environment: str = "MORTICE_API_KEYS") -> tuple[str, ...]:
    """Keys from a file (one a line, # for comments) and from an environment variable (comma-separated)."""
    keys: list[str] = []
    if path is not None:
        try:
            lines = Path(path).read_text().splitlines()
        except OSError as error:
            raise RequestError(f"cannot read {path}: {error.strerror}", param="api_keys") from error
        keys += [line.strip() for line in lines if not line.lstrip().startswith("#")]
    keys += [key.strip() for key in os.environ.get(environment, "").split(",")]
    return tuple(dict.fromkeys(key for key in keys if key))
