"""Who may call our servers over HTTP: the resource-server side of OAuth. Tokens are made elsewhere; here their signature,
time, issuer and audience are checked, and none is ever passed on.
"""

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import msgspec
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from pydantic import AnyHttpUrl

from mortice.agent.spec import read_document
from mortice.obs.log import Log
from mortice.specs.checked import checked
from mortice.specs.errors import RequestError

_log = Log("agent.mcp")
_ALGORITHMS = [
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "ES256",
    "ES384",
    "EdDSA",
]  # no shared secrets, never `none`
_LEEWAY_S = 30
MAX_TOKEN_CHARS = 16_384


class Auth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`resource` is this server's address as clients know it: the audience that tokens must name. `jwks`: a file, or an
    https address of the issuer's keys.
    """

    issuer: str
    resource: str
    jwks: str
    scopes: tuple[str, ...] = ()


def read_auth(path: Path) -> Auth:
    """RequestError names the field that is wrong."""
    auth = checked(read_document(path), Auth)
    for field in ("issuer", "resource"):
        parts = urlsplit(getattr(auth, field))
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise RequestError(f"{field}: an http(s) address", param=field)
    if "://" in auth.jwks and urlsplit(auth.jwks).scheme != "https":
        raise RequestError("jwks: a file, or an https address", param="jwks")
    if "://" not in auth.jwks:
        auth = msgspec.structs.replace(auth, jwks=str(path.resolve().parent / auth.jwks))
    return auth


def settings_of(auth: Auth) -> AuthSettings:
    return AuthSettings(
        issuer_url=AnyHttpUrl(auth.issuer),
        resource_server_url=AnyHttpUrl(auth.resource),
        required_scopes=list(auth.scopes) or None,
        validate_token_resource=False,  # the verifier below does
    )


class JwtVerifier:
    """The SDK's TokenVerifier over JSON Web Tokens."""

    def __init__(self, auth: Auth) -> None:
        self._auth = auth
        self._remote = jwt.PyJWKClient(auth.jwks, timeout=10) if "://" in auth.jwks else None
        self._local = None if self._remote else _read_keys(Path(auth.jwks))

    async def verify_token(self, token: str) -> AccessToken | None:
        if len(token) > MAX_TOKEN_CHARS:
            return None
        try:
            key = await asyncio.to_thread(self._key, token)
            claims = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                audience=self._auth.resource,
                issuer=self._auth.issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (jwt.PyJWTError, KeyError, ValueError) as error:
            _log.info("a token was refused", why=type(error).__name__)
            return None
        return AccessToken(
            token=token,
            client_id=str(claims.get("client_id") or claims.get("azp") or claims.get("sub") or ""),
            scopes=_scopes(claims),
            expires_at=int(claims["exp"]),
            resource=self._auth.resource,
            subject=claims.get("sub"),
            claims={"iss": claims["iss"]},
        )

    def _key(self, token: str) -> Any:
        if self._remote is not None:
            return self._remote.get_signing_key_from_jwt(token).key
        assert self._local is not None
        kid = jwt.get_unverified_header(token).get("kid")
        if kid is None and len(self._local) == 1:
            return next(iter(self._local.values()))
        return self._local[kid]


def _scopes(claims: dict[str, Any]) -> list[str]:
    found = claims.get("scope", claims.get("scp", ""))
    return found.split() if isinstance(found, str) else [str(scope) for scope in found]


def _read_keys(path: Path) -> dict[str | None, Any]:
    try:
        keys = jwt.PyJWKSet.from_dict(json.loads(path.read_text())).keys
    except OSError as error:
        raise RequestError(f"jwks: {path}: {error.strerror}", param="jwks") from error
    except (ValueError, KeyError, TypeError, jwt.PyJWTError) as error:
        raise RequestError(f"jwks: {path} has no usable keys: {error}", param="jwks") from error
    return {key.key_id: key.key for key in keys}
