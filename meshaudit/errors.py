"""Every error that meshaudit raises.

    MeshauditError
    ├── ServerError             a local Postgres server cannot be made, started or stopped
    ├── Unreachable             no server answers, or it went away
    ├── WrongPassword           the server refused the login
    ├── NoSuchDatabase          the server has no such database
    ├── NotMigrated             the database has no meshaudit, or an older one
    ├── SchemaTooNew            the database is newer than this program
    ├── NoPermission            the role lacks a privilege
    ├── BadArgument             a filter or option has no meaning
    ├── StoreFailed             an object store cannot be used
    └── AuditError              raised by the SQL core, one class for each of its SQLSTATEs
        ├── AccessDenied        MA001
        ├── CannotRecord        MA002
        ├── AppendOnly          MA003
        ├── NoSuchSecret        MA004
        └── BadSqlArgument      MA005

A class's docstring is its default message and `hint` its default hint. `translate` is the only place
where SQLSTATEs become classes.
"""

import re
from typing import ClassVar

import psycopg


class MeshauditError(Exception):
    """meshaudit failed."""

    default_hint: ClassVar[str] = ""

    def __init__(self, message: str = "", hint: str = "") -> None:
        doc = (type(self).__doc__ or "").strip()
        self.message = message or doc.partition("\n")[0]
        self.hint = hint or self.default_hint
        super().__init__(self.message)

    def __reduce__(self) -> tuple[type["MeshauditError"], tuple[str, str]]:
        # from another process it comes with its hint
        return type(self), (self.message, self.hint)


class ServerError(MeshauditError):
    """The local Postgres server failed."""


class Unreachable(MeshauditError):
    """No Postgres server answers."""

    default_hint = "check --dsn, MESHAUDIT_DSN or libpq's PG* variables, and that the server runs"


class WrongPassword(MeshauditError):
    """The server refused this login."""

    default_hint = "check the user name and the password (PGPASSWORD, or a passfile)"


class NoSuchDatabase(MeshauditError):
    """The server has no such database."""

    default_hint = "check the database's name in the DSN"


class NotMigrated(MeshauditError):
    """This database has no meshaudit schema, or an older one."""

    default_hint = "run: meshaudit migrate"


class SchemaTooNew(MeshauditError):
    """This database's meshaudit schema is newer than this program."""

    default_hint = "upgrade the meshaudit package"


class NoPermission(MeshauditError):
    """This role lacks a privilege."""

    default_hint = "connect as a role that is a member of the meshaudit role needed for this"


class BadArgument(MeshauditError):
    """A filter or option has no meaning."""


class StoreFailed(MeshauditError):
    """The object store failed."""

    default_hint = "the words are the store's own; check the URL, the credentials and the endpoint"


class AuditError(MeshauditError):
    """The audit log refused."""

    sqlstate: ClassVar[str] = ""


class AccessDenied(AuditError):
    """Access to this secret is denied."""

    sqlstate = "MA001"


class CannotRecord(AuditError):
    """No store can record this access, so it was refused."""

    sqlstate = "MA002"


class AppendOnly(AuditError):
    """The audit log is append-only."""

    sqlstate = "MA003"


class NoSuchSecret(AuditError):
    """There is no such secret."""

    sqlstate = "MA004"


class BadSqlArgument(AuditError):
    """An argument has no meaning."""

    sqlstate = "MA005"


_BY_SQLSTATE: dict[str, type[MeshauditError]] = {
    **{cls.sqlstate: cls for cls in (AccessDenied, CannotRecord, AppendOnly, NoSuchSecret, BadSqlArgument)},
    "28000": WrongPassword,  # invalid_authorization_specification
    "28P01": WrongPassword,  # invalid_password
    "3D000": NoSuchDatabase,  # invalid_catalog_name
    "42501": NoPermission,  # insufficient_privilege
    "53300": Unreachable,  # too_many_connections
    "57P01": Unreachable,  # admin_shutdown
    "57P02": Unreachable,  # crash_shutdown
    "57P03": Unreachable,  # cannot_connect_now
}

# undefined table, schema and function: ours only when the message names meshaudit.
_MISSING_OBJECT = {"42P01", "3F000", "42883"}

# libpq reports no SQLSTATE for a failed connection, so its English text is all there is; in any other
# language the error stays Unreachable, with the server's own words.
_BY_LOGIN_TEXT: list[tuple[re.Pattern[str], type[MeshauditError]]] = [
    (re.compile(r"database \".*\" does not exist"), NoSuchDatabase),
    (
        re.compile(
            r"authentication failed|no password supplied|no pg_hba\.conf entry"
            r"|role \".*\" does not exist|not permitted to log in"
        ),
        WrongPassword,
    ),
    (re.compile(r"permission denied for database"), NoPermission),
]


def translate(exc: psycopg.Error) -> MeshauditError:
    """The meshaudit error that a database error means. Chain it: `raise translate(e) from e`."""
    message = exc.diag.message_primary or _one_line(str(exc))
    hint = exc.diag.message_hint or ""
    state = exc.sqlstate
    if state is None:
        return _connection_failure(exc, message, hint)
    if state in _MISSING_OBJECT and "meshaudit" in message:
        return NotMigrated()
    if state.startswith("08"):
        return Unreachable(message, hint)
    if state == "55P03":  # lock_not_available
        return MeshauditError(
            message, hint or "open transactions use the table: try again when they have ended"
        )
    return _BY_SQLSTATE.get(state, MeshauditError)(message, hint)


def _connection_failure(exc: psycopg.Error, message: str, hint: str) -> MeshauditError:
    for pattern, cls in _BY_LOGIN_TEXT:
        if pattern.search(str(exc)):
            return cls(message, hint)
    if isinstance(exc, psycopg.OperationalError):
        return Unreachable(message, hint)
    if isinstance(exc, psycopg.ProgrammingError):
        # psycopg itself refused: a DSN that does not parse, a statement that is no statement.
        return BadArgument(message, hint)
    return MeshauditError(message, hint)


def _one_line(text: str) -> str:
    # psycopg lists each address it tried on a line of its own; the first says enough.
    first = text.strip().partition("\n")[0].strip()
    return first.removeprefix("connection failed: ").removeprefix("connection is bad: ")
