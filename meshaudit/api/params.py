"""What a query string says, checked: each refusal names its parameter.

An empty parameter is none, as an empty field of a form is. One that is given twice, or that there is not,
is refused:
whoever searches an audit log must not be shown less, or more, than asked for.
"""

import calendar
import re
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from meshaudit import filters
from meshaudit.api.problems import Problem, bad_parameter
from meshaudit.errors import BadArgument
from meshaudit.queries import Filters

_CHOICES = {
    "access_type": ("read", "write"),
    "operation": ("read", "create", "update", "delete"),
    "outcome": ("granted", "denied", "rolled_back"),
}
_DURATION = re.compile(
    r"P(?=.)(?:(\d{1,4})Y)?(?:(\d{1,4})M)?(?:(\d{1,4})W)?(?:(\d{1,5})D)?"
    r"(?:T(?=.)(?:(\d{1,6})H)?(?:(\d{1,6})M)?(?:(\d{1,8})S)?)?",
    re.ASCII,
)
_RANGE_HINT = "write it like 2026-11-01/2026-12-01, 2026-11-01T00:00:00Z/P1D, 2026-11-01/.. or ../2026-12-01"


def _text(description: str, *examples: str, **more: Any) -> Any:
    return Field(default=None, description=description, examples=list(examples), **more)


class FilterQuery(BaseModel):
    """Filters, all optional and combined."""

    model_config = ConfigDict(extra="forbid")

    secret_id: Annotated[
        str | None, _text("Accesses to this secret.", "44e60559-bcd6-440d-8d99-6396399f27f9")
    ]
    date_range: Annotated[
        str | None,
        _text(
            "A range of time in ISO 8601, START/END: START <= timestamp < END. Either end may be open"
            " (`..` or nothing)"
            " or a duration. A time without an offset is UTC; a date is its midnight.",
            "2026-11-01/2026-12-01",
            "2026-11-24T10:00:00Z/..",
            "2026-11-01/P1M",
        ),
    ]
    from_: Annotated[
        str | None, _text("At this time or later, in ISO 8601.", "2026-11-24T10:00:00Z", alias="from")
    ]
    to: Annotated[str | None, _text("Before this time, in ISO 8601.", "2026-11-25")]
    user_identity: Annotated[str | None, _text("By this login or JWT subject.", "billing")]
    access_type: Annotated[str | None, _text("read or write.", "read")]
    operation: Annotated[str | None, _text("read, create, update or delete.", "update")]
    outcome: Annotated[str | None, _text("granted, denied or rolled_back.", "denied")]
    scope: Annotated[str | None, _text("In this tenant or project.", "payments")]
    ip: Annotated[
        str | None, _text("From this address or network.", "10.0.0.7", "10.0.0.0/8", "2001:db8::/32")
    ]

    def filters(self) -> Filters:
        """As the search takes them."""
        given = {name: value or None for name, value in self.model_dump().items()}
        for name, value in given.items():
            if isinstance(value, str) and "\0" in value:
                raise bad_parameter(name.rstrip("_"), "a NUL cannot be searched for")
        for name, choices in _CHOICES.items():
            if given[name] is not None and given[name] not in choices:
                raise bad_parameter(name, f"{name} must be one of: {', '.join(choices)}")
        start, end = _ends(given)
        try:
            address = filters.address("ip", given["ip"])
        except BadArgument as exc:
            raise bad_parameter("ip", exc.message, exc.hint) from None
        kept = {field.name: given[field.name] for field in fields(Filters) if field.name in given}
        return Filters(**kept | {"from_time": start, "to_time": end, "ip": address})


class PageQuery(FilterQuery):
    """Filters, and which page of what they find."""

    cursor: Annotated[str | None, _text("Go on behind this place: the page before says it, as next_cursor.")]
    limit: Annotated[
        str | None, _text("Entries on a page, 1 to 1000; without it 100.", "100", pattern="^(|[0-9]{1,4})$")
    ]

    def page(self) -> tuple[str | None, int]:
        """Cursor and size."""
        try:
            after = filters.cursor("cursor", self.cursor or None)
        except BadArgument as exc:
            raise bad_parameter("cursor", exc.message, "take next_cursor of the page before") from None
        limit = int(self.limit) if self.limit and self.limit.isascii() else 100
        if not 1 <= limit <= 1000:
            raise bad_parameter("limit", "limit must be 1 to 1000", "for more, go on with next_cursor")
        return after, limit


def single(request: Request) -> None:
    """Refuse what is given twice."""
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name in seen:
            raise bad_parameter(name, f"{name} is given twice", "each parameter is given once")
        seen.add(name)


def no_query(request: Request) -> None:
    """Refuse any parameter."""
    for name in request.query_params:
        raise bad_parameter(name, f"there is no parameter {name!r}", "this address takes none")


def _ends(given: dict[str, Any]) -> tuple[datetime | None, datetime | None]:
    if given["date_range"] is not None:
        for name, public in (("from_", "from"), ("to", "to")):
            if given[name] is not None:
                raise bad_parameter(public, f"date_range and {public} exclude each other", "give one of them")
        start, end, name = *date_range(given["date_range"]), "date_range"
    else:
        start, end, name = _time("from", given["from_"]), _time("to", given["to"]), "to"
    if start is not None and end is not None and start >= end:
        raise bad_parameter(
            name, f"{name}: the range ends before it begins, or is empty", "START <= timestamp < END"
        )
    return start, end


def date_range(text: str) -> tuple[datetime | None, datetime | None]:
    """The ends of an ISO 8601 interval; None is open."""
    parts = text.split("/")
    if len(parts) != 2:
        raise bad_parameter("date_range", "date_range is not START/END", _RANGE_HINT)
    start, end = (part.strip() for part in parts)
    if start.startswith("P") or end.startswith("P"):
        return _with_duration(start, end)
    return _end(start), _end(end)


def _end(text: str) -> datetime | None:
    return None if text in ("", "..") else _time("date_range", text)


def _with_duration(start: str, end: str) -> tuple[datetime, datetime]:
    fixed = _end(end if start.startswith("P") else start)
    if fixed is None or (start.startswith("P") and end.startswith("P")):
        raise bad_parameter("date_range", "date_range: a duration takes a time at its other end", _RANGE_HINT)
    try:
        if start.startswith("P"):
            return _shift(fixed, start, -1), fixed
        return fixed, _shift(fixed, end, 1)
    except (OverflowError, ValueError):
        raise bad_parameter("date_range", "date_range leaves the calendar", _RANGE_HINT) from None


def _shift(moment: datetime, duration: str, sign: int) -> datetime:
    found = _DURATION.fullmatch(duration)
    if found is None:
        raise bad_parameter(
            "date_range", f"date_range: {duration!r} is not a duration", "such as P1M, P7D or PT2H30M"
        )
    years, months, weeks, days, hours, minutes, seconds = (sign * int(n or 0) for n in found.groups())
    month = moment.year * 12 + moment.month - 1 + years * 12 + months
    year, month = divmod(month, 12)
    # The 31st, a month on, is that month's last day.
    day = min(moment.day, calendar.monthrange(year, month + 1)[1])
    moved = moment.replace(year=year, month=month + 1, day=day)
    return moved + timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)


def _time(name: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    # A plus sign that was not percent-encoded arrives as a space.
    text = re.sub(r"(T[0-9:.]+) (\d\d(?::?\d\d)?)$", r"\1+\2", text)
    try:
        return filters.time(name, text)
    except BadArgument as exc:
        raise bad_parameter(name, exc.message, exc.hint) from None


def entry_id(text: str) -> int:
    """An entry's number in a path; what cannot be one is not found."""
    if not re.fullmatch(r"[1-9][0-9]{0,18}", text, re.ASCII) or int(text) >= 2**63:
        raise Problem(404, "not-found", "there is no such entry, or you may not see it")
    return int(text)
