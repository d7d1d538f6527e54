"""Tokens: from an Authorization header to a caller.

Invariants
  * a key has one algorithm, its own; the token's header chooses among keys, never what is done with one: a
    secret checks
    HS256 and nothing else, an RSA key RS256, a P-256 key ES256. Keys in the header (jwk, jku, x5c, x5u)
    are not looked at;
  * whatever is wrong with a token, the answer is 401, and the same for all that concerns keys and signatures;
  * what reaches the database is JSON that it can read: claims that it would read differently, or not at
    all, are refused,
    because there a caller without a subject would count as the login.
"""

import asyncio
import json
import logging
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from meshaudit.api.problems import Problem, unauthenticated
from meshaudit.api.settings import Settings
from meshaudit.errors import BadArgument

TOKEN_BYTES = 8192
_LEEWAY = 5  # seconds that clocks may differ
_RSA_BITS = 2048
_REFETCH = 30.0  # seconds between two looks for a key that is not in the set
_MAX_AGE = 600.0  # and when the set is fetched anew anyhow, so that a key can be withdrawn
_SET_BYTES = 1 << 20
_log = logging.getLogger("meshaudit.api")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as the token says. `role` None: no authentication is configured, and the login itself
    asks."""

    subject: str
    role: str | None
    claims: str
    expires: float | None


NOBODY = Caller("", None, "", None)


@dataclass(frozen=True, slots=True)
class _Key:
    algorithm: str
    key: Any
    kid: str | None


class KeySet:
    """A JWK set, from a file or a URL; fetched anew when a token names a key that is not in it."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._keys: list[_Key] = []
        self._fetched = self._tried = float("-inf")
        self._lock = asyncio.Lock()

    async def find(self, algorithm: str, kid: str | None) -> _Key | None:
        """The key of that name and algorithm. Without a name there must be only one."""
        now = time.monotonic()
        found = self._match(algorithm, kid)
        stale = now - self._fetched > _MAX_AGE or found is None
        if stale and now - self._tried > _REFETCH:
            async with self._lock:
                if now - self._tried > _REFETCH:
                    await asyncio.to_thread(self.refresh)
            found = self._match(algorithm, kid)
        return found

    def _match(self, algorithm: str, kid: str | None) -> _Key | None:
        fit = [key for key in self._keys if key.algorithm == algorithm and kid in (None, key.kid)]
        return fit[0] if len(fit) == 1 else None

    def refresh(self, *, strict: bool = False) -> None:
        """Read the source; a set that cannot be read leaves the old keys in force, unless `strict`."""
        self._tried = time.monotonic()
        try:
            self._keys = _keys(self._read(), _shown(self._source))
        except (ValueError, RecursionError) as exc:
            self._failed(
                str(exc),
                "it must be a JWK set with RSA keys of 2048 bits or more, or P-256 keys",
                exc,
                strict,
            )
        except (OSError, HTTPException) as exc:
            why = getattr(exc, "strerror", None) or getattr(exc, "reason", None) or exc
            self._failed(
                f"cannot read {_shown(self._source)}: {why}",
                "give a file or a URL that this server's user can read",
                exc,
                strict,
            )
        else:
            self._fetched = time.monotonic()

    @staticmethod
    def _failed(what: str, hint: str, exc: Exception, strict: bool) -> None:
        if strict:
            raise BadArgument(f"MESHAUDIT_JWKS: {what}", hint) from exc
        _log.warning("JWK set: %s", what)

    def _read(self) -> bytes:
        if not self._source.startswith(("http://", "https://")):
            return Path(self._source.removeprefix("file://")).read_bytes()
        with urllib.request.urlopen(self._source, timeout=5) as answer:
            text: bytes = answer.read(_SET_BYTES)
        return text


def _shown(source: str) -> str:
    # A URL may carry a password, or a token.
    return re.sub(r"^(https?://)(?:[^/@]*@)?([^?#]*).*", r"\1\2", source)


def _keys(text: bytes, source: str) -> list[_Key]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"{source} is not JSON") from exc
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError(f"{source} is not a JWK set")
    found = [key for item in document["keys"] if (key := _key(item)) is not None]
    if not found:
        raise ValueError("no key in it can be used")
    return found


def _key(item: Any) -> _Key | None:
    # A symmetric key in a set would be a public secret. One that is for encryption is not for us.
    if not isinstance(item, dict) or item.get("kty") not in ("RSA", "EC") or item.get("use", "sig") != "sig":
        return None
    algorithm = "RS256" if item["kty"] == "RSA" else "ES256"
    if item.get("alg", algorithm) != algorithm:
        return None
    try:
        # A private key in the set is taken for its public half.
        public = {name: item[name] for name in ("kty", "n", "e", "crv", "x", "y") if name in item}
        key = jwt.PyJWK(public, algorithm=algorithm).key
    except jwt.PyJWTError:
        return None
    good = (
        key.key_size >= _RSA_BITS
        if isinstance(key, RSAPublicKey)
        else isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
    )
    kid = item.get("kid")
    return _Key(algorithm, key, kid if isinstance(kid, str) else None) if good else None


class Tokens:
    """Checks tokens as configured."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._secret = _Key("HS256", settings.jwt_secret.encode(), None) if settings.jwt_secret else None
        self._set = KeySet(settings.jwks) if settings.jwks else None

    def load(self) -> None:
        """Fetch the keys, so that a server that can check nothing does not start."""
        if self._set is not None:
            self._set.refresh(strict=True)

    async def caller(self, authorization: list[str]) -> Caller:
        """Who sent these Authorization headers."""
        if not self._settings.authenticated:
            return NOBODY
        if not authorization:
            raise unauthenticated("this takes a token: Authorization: Bearer …", error="")
        scheme, _, token = authorization[0].partition(" ")
        if len(authorization) > 1 or scheme.lower() != "bearer":
            raise unauthenticated(
                "one Authorization header of the scheme Bearer is taken", error="invalid_request"
            )
        if len(token) > TOKEN_BYTES:
            raise unauthenticated(f"a token has at most {TOKEN_BYTES} bytes")
        try:
            claims = await self._claims(token.strip())
            return _caller(claims)
        except jwt.ExpiredSignatureError:
            raise unauthenticated("the token has expired") from None
        except jwt.ImmatureSignatureError:
            raise unauthenticated("the token is not valid yet") from None
        except (jwt.InvalidIssuerError, jwt.InvalidAudienceError, jwt.MissingRequiredClaimError):
            raise unauthenticated(
                "the token is not for this service, or lacks a claim that it needs"
            ) from None
        except Problem:
            raise
        except Exception:
            # Whatever a parser makes of a stranger's bytes.
            raise unauthenticated("the token is not valid") from None

    async def _claims(self, token: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        kid = header.get("kid")
        if (
            "crit" in header
            or not (kid is None or isinstance(kid, str))
            or header.get("b64", True) is not True
        ):
            raise jwt.InvalidTokenError
        key = await self._key(header.get("alg"), kid)
        if key is None:
            raise jwt.InvalidTokenError
        claims: dict[str, Any] = jwt.decode(
            token,
            key.key,
            algorithms=[key.algorithm],
            issuer=self._settings.issuer,
            audience=self._settings.audience,
            leeway=_LEEWAY,
            # A token for somebody else's ears is refused where an audience is configured, and only there.
            options={"require": ["exp"], "verify_aud": self._settings.audience is not None},
        )
        return claims

    async def _key(self, algorithm: Any, kid: str | None) -> _Key | None:
        if algorithm == "HS256":
            return self._secret
        if algorithm in ("RS256", "ES256") and self._set is not None:
            return await self._set.find(algorithm, kid)
        return None


def _caller(claims: dict[str, Any]) -> Caller:
    # NaN and infinities are no JSON to Postgres, nor are NUL and halves of surrogate pairs in its jsonb.
    text = json.dumps(claims, allow_nan=False)
    json.dumps(claims, ensure_ascii=False).encode()
    if "\\u0000" in text:
        raise ValueError("NUL in a claim")
    subject, role = claims.get("sub"), claims.get("role")
    if role is not None and not isinstance(role, str):
        raise ValueError("role is no string")
    if subject is not None and (not isinstance(subject, str) or not 1 <= len(subject) <= 256):
        # The database would cut it, and take it for another.
        raise ValueError("sub is no string of 1 to 256 characters")
    return Caller(subject or f"role:{role}", role or "", text, float(claims["exp"]))
