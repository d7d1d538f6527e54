"""How a server is configured."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from meshaudit.errors import BadArgument

SECRET_BYTES = 32  # RFC 7518: a key for HS256 is as long as its hash, or longer
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that decides how a server behaves."""

    dsn: str = ""
    jwt_secret: str | None = None
    jwks: str | None = None
    issuer: str | None = None
    audience: str | None = None
    cors_origins: tuple[str, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()
    pool_size: int = 8
    statement_seconds: float = 10.0
    stream_seconds: float = 3600.0
    export_seconds: float = 3600.0
    max_requests: int = 64
    max_streams: int = 100
    otel: bool = False

    @property
    def authenticated(self) -> bool:
        """Whether callers must show a token."""
        return self.jwt_secret is not None or self.jwks is not None

    def __post_init__(self) -> None:
        if self.jwt_secret is not None and len(self.jwt_secret.encode()) < SECRET_BYTES:
            raise BadArgument(
                f"MESHAUDIT_JWT_SECRET is shorter than {SECRET_BYTES} bytes",
                "make one with: openssl rand -hex 32",
            )
        if self.jwt_secret is not None and self.jwt_secret.lstrip().startswith("-----BEGIN"):
            raise BadArgument(
                "MESHAUDIT_JWT_SECRET is a PEM file, and no secret",
                "give public keys as a JWK set: MESHAUDIT_JWKS",
            )
        for origin in self.cors_origins:
            if not re.fullmatch(r"https?://[^/*\s]+", origin):
                raise BadArgument(
                    f"--cors-origin: {origin!r} is not an origin", "write it like https://console.example.com"
                )


def from_environment(environment: Mapping[str, str]) -> dict[str, str | None]:
    """The settings that come from the environment; an empty variable is none."""
    names = {"jwt_secret": "JWT_SECRET", "jwks": "JWKS", "issuer": "JWT_ISSUER", "audience": "JWT_AUDIENCE"}
    return {key: environment.get(f"MESHAUDIT_{name}") or None for key, name in names.items()}


def networks(option: str, texts: list[str]) -> tuple[Network, ...]:
    """Addresses and networks."""
    try:
        return tuple(ipaddress.ip_network(text.strip()) for text in texts)
    except ValueError as exc:
        raise BadArgument(f"{option}: {exc}", "write it like 10.0.0.7 or 10.0.0.0/8") from exc
