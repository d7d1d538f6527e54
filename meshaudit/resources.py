"""Where the SQL and the migrations live: inside the wheel, or in a checkout's own folders."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def sql_dir() -> Path:
    """The current state of the schema, one concept a file; name order is dependency order."""
    return _folder("sql")


def migrations_dir() -> Path:
    """sqitch's plan, deploy/, revert/ and verify/, and yoyo's shims."""
    return _folder("migrations")


def _folder(name: str) -> Path:
    shipped = _PACKAGE / f"_{name}"
    return shipped if shipped.is_dir() else _PACKAGE.parent / name
