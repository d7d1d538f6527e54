"""What a person types as a filter, turned into what the database takes.

Times are ISO 8601; one without an offset is UTC, as all times that meshaudit prints are.
"""

import ipaddress
import re
from datetime import UTC, datetime, timedelta

from meshaudit.errors import BadArgument

BIGINT = 2**63 - 1
INTEGER = 2**31 - 1
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def time(option: str, text: str | None) -> datetime | None:
    """A point in time: 2026-11-24, 2026-11-24T10:00, 2026-11-24T10:00:00+01:00, …Z; now, today, yesterday."""
    if text is None:
        return None
    now = datetime.now(UTC)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    words = {"now": now, "today": today, "yesterday": today - timedelta(days=1)}
    if text.strip().lower() in words:
        return words[text.strip().lower()]
    try:
        parsed = datetime.fromisoformat(text.strip())
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise BadArgument(
            f"{option}: {text!r} is not a time", "write it like 2026-11-24 or 2026-11-24T10:30:00Z"
        ) from exc


def span(option: str, text: str) -> timedelta:
    """A length of time: 90s, 15m, 2h, 3d, 1w."""
    found = re.fullmatch(r"\s*([0-9]{1,6})\s*([smhdw])\s*", text)
    if found is None:
        raise BadArgument(
            f"{option}: {text!r} is not a length of time", "write it like 90s, 15m, 2h, 3d or 1w"
        )
    length = timedelta(**{_UNITS[found[2]]: int(found[1])})
    # Longer, and the server's clock minus it would leave the calendar.
    if length > timedelta(days=36500):
        raise BadArgument(f"{option}: {text!r} is too long", "a hundred years is the most")
    return length


def address(option: str, text: str | None) -> str | None:
    """An address or a network: 10.0.0.7, 10.0.0.0/8, 2001:db8::/32."""
    if text is None:
        return None
    try:
        if "%" in text:
            raise ValueError("Postgres's inet has no zones")
        return str(ipaddress.ip_interface(text.strip())) if "/" in text else str(ipaddress.ip_address(text))
    except ValueError as exc:
        raise BadArgument(
            f"{option}: {text!r} is not an address", "write it like 10.0.0.7, 10.0.0.0/8 or 2001:db8::/32"
        ) from exc


def cursor(option: str, text: str | None) -> str | None:
    """A place in a search, as an earlier search printed it."""
    if text is not None and not re.fullmatch(r"[0-9a-f]{40}", text):
        raise BadArgument(f"{option}: {text!r} is not a cursor", "take it from the last line of a search")
    return text


def plain(option: str, text: str | None) -> str | None:
    """Text that the database can take; None stays None."""
    if text is not None:
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            # Bytes of the command line that are no UTF-8 arrive as lone surrogates.
            raise BadArgument(f"{option}: not valid UTF-8", "check the terminal's encoding") from exc
    return text


def most(option: str, number: int, limit: int = BIGINT) -> int:
    """A number that the database can take."""
    if number > limit:
        raise BadArgument(f"{option}: {number} is too much", f"{limit} is the most")
    return number
