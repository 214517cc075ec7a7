"""Who may ask: API keys for the open routes, loopback or a token for the admin routes."""

import hmac
import ipaddress

from mortice.serve.errors import HttpError
from mortice.serve.link import Link
from mortice.serve.options import ServeOptions

_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


def check_key(link: Link, options: ServeOptions) -> None:
    """Raise 401 unless the request carries one of the keys, or none are asked for. The admin token opens
    too.
    """
    if not options.api_keys:
        return
    given = _bearer(link)
    known = (*options.api_keys, options.admin_token or options.api_keys[0])
    # Every key is compared in full, so that the time tells nothing of which one nearly matched.
    if given is None or sum(_same(given, key) for key in known) == 0:
        raise _unauthorized("a valid API key is required: send it as `Authorization: Bearer KEY`")


def check_admin(link: Link, options: ServeOptions) -> None:
    """Raise 401 without the admin token where there is one; else 403 unless the client sits on this
    machine.
    """
    if options.admin_token is not None:
        given = _bearer(link)
        if given is None or not _same(given, options.admin_token):
            raise _unauthorized("admin routes need the admin token: send it as `Authorization: Bearer TOKEN`")
        return
    if not _is_local(link):
        message = "admin routes answer this machine only, unless the server is given an admin token"
        raise HttpError(403, "permission_error", message, code="admin_is_local")


def _is_local(link: Link) -> bool:
    """A loopback peer that is no proxy, and no browser that another site's page sent here."""
    client = link.scope.get("client")
    if not client or not _is_loopback(client[0]):
        return False
    if link.header(b"x-forwarded-for") is not None or link.header(b"forwarded") is not None:
        return False
    origin = link.header(b"origin")
    if origin is not None and _host(origin.partition("://")[2]) not in _LOCAL_NAMES:
        return False
    host = link.header(b"host")
    return host is None or _host(host) in _LOCAL_NAMES


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _host(authority: str) -> str:
    """`name:port` without its port."""
    name, colon, port = authority.rpartition(":")
    return name if colon and port.isdigit() else authority


def _bearer(link: Link) -> str | None:
    value = link.header(b"authorization")
    if value is None:
        return link.header(b"x-api-key")
    scheme, _, key = value.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def _same(given: str, known: str) -> bool:
    return hmac.compare_digest(given.encode("latin-1", "replace"), known.encode())


def _unauthorized(message: str) -> HttpError:
    return HttpError(401, "authentication_error", message, code="invalid_api_key")
