"""One request as PostgREST runs it: transaction, settings, main query, answer.

    rest = Rest(db)
    rest.as_user(sub).get("secrets", select="*, project:projects(name)", order="created_at.desc")

The login is `authenticator`, which owns nothing and inherits nothing; the request's role is set in its transaction.
Statements are prepared once and reused by later requests, as in PostgREST's pool.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import RawCursor
from psycopg.rows import tuple_row
from psycopg.types.json import set_json_loads

from tests.postgrest import build
from tests.postgrest.cache import SchemaCache
from tests.postgrest.plan import RequestError, read_of, resolve, returning, split, unquote
from tests.support import Db

JSON_OBJECT = "application/vnd.pgrst.object+json"

# SQLSTATE to HTTP: the longest prefix that fits. (42501, 21000, 22023, PT… and PGRST are decided in code.)
_STATUS = {
    "08": 503, "09": 500, "0L": 403, "0P": 403, "23503": 409, "23505": 409, "25006": 405, "25": 500, "28": 403,
    "2D": 500, "38": 500, "39": 500, "3B": 500, "40": 500, "53400": 500, "53": 503, "54": 500, "55": 500,
    "57P01": 503, "57": 500, "58": 500, "F0": 500, "HV": 500, "P0001": 400, "P0": 500, "XX": 500, "42883": 404,
    "42P01": 404, "42P17": 500,
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What the HTTP client gets."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def count(self) -> int | None:
        """The total of a request with count=exact."""
        total = self.headers.get("Content-Range", "/*").rpartition("/")[2]
        return None if total == "*" else int(total)


class Rest:
    """A PostgREST before one database. `max_rows` is Supabase's default; `version` 12, 13 or 14."""

    def __init__(
        self,
        db: Db,
        schema: str = "public",
        *,
        extra_search_path: tuple[str, ...] = ("public", "extensions"),
        max_rows: int | None = 1000,
        version: int = 14,
        anon_role: str = "anon",
    ) -> None:
        self.schema = schema
        self.search_path = ", ".join(build.ident(s) for s in (schema, *extra_search_path))
        self.max_rows = max_rows
        self.version = version
        self.anon_role = anon_role
        self.conn = db.connect("authenticator")
        # the body is passed on as the server made it
        set_json_loads(_raw, self.conn)
        self.cache = SchemaCache(self.conn)

    def reload(self) -> None:
        """NOTIFY pgrst, 'reload schema'."""
        self.cache = SchemaCache(self.conn)

    def as_anon(self) -> "Caller":
        """Somebody with the project's public key."""
        return Caller(self, {"role": self.anon_role})

    def as_user(self, sub: str, **claims: Any) -> "Caller":
        """Somebody logged in."""
        return Caller(self, {"sub": sub, "role": "authenticated", "aud": "authenticated", **claims})

    def as_service(self) -> "Caller":
        """A background worker with the service key."""
        return Caller(self, {"role": "service_role"})


@dataclass(frozen=True)
class Caller:
    """Who asks: the claims of a verified JWT, and the request's headers."""

    rest: Rest
    claims: dict[str, Any]
    headers: dict[str, str] = field(
        default_factory=lambda: {"user-agent": "supabase-js", "cf-connecting-ip": "203.0.113.7"}
    )

    def get(self, table: str, *, count: bool = False, single: bool = False, **params: str) -> Answer:
        """GET /table?params; count is Prefer: count=exact, single is .single()."""
        return self._read("GET", table, params, count, single)

    def head(self, table: str, *, count: bool = True, **params: str) -> Answer:
        """HEAD: supabase-js's {head: true}."""
        return self._read("HEAD", table, params, count, single=False)

    def insert(
        self,
        table: str,
        body: Any,
        *,
        single: bool = False,
        resolution: str | None = None,
        defaults: bool = False,
        **params: str,
    ) -> Answer:
        """POST /table; it returns rows if there is a select. resolution: merge-duplicates, ignore-duplicates."""
        return self._write("insert", table, _bytes(body), params, single, resolution, defaults)

    def update(
        self, table: str, body: Any, *, single: bool = False, defaults: bool = False, **params: str
    ) -> Answer:
        """PATCH /table?filters"""
        return self._write("update", table, _bytes(body), params, single, None, defaults)

    def delete(self, table: str, *, single: bool = False, **params: str) -> Answer:
        """DELETE /table?filters"""
        return self._write("delete", table, b"", params, single, None, defaults=False)

    def rpc(
        self,
        name: str,
        args: Any = None,
        *,
        get: bool = False,
        count: bool = False,
        single: bool = False,
        **params: str,
    ) -> Answer:
        """POST /rpc/name with a JSON body; by GET, args are the query string's."""
        try:
            return self._rpc(name, args or {}, get, count, single, params)
        except RequestError as e:
            return _refused(e)

    def _rpc(
        self, name: str, args: Mapping[str, Any], get: bool, count: bool, single: bool, params: dict[str, str]
    ) -> Answer:
        rest = self.rest
        function = rest.cache.function((rest.schema, name), set(args))
        if function is None:
            given = ", ".join(sorted(args)) or "without parameters"
            message = f"Could not find the function {rest.schema}.{name}({given}) in the schema cache"
            raise RequestError(404, "PGRST202", message)
        read = read_of(function.returns_table or name, list(params.items()), rest.max_rows)
        resolve(read, rest.cache, rest.schema, build.SOURCE)
        passed: dict[str, str] | bytes = {k: _text(v) for k, v in args.items()} if get else _bytes(args)
        statement = build.main_call(function, passed, read, count=count, single=single, version=rest.version)
        method = "GET" if get else "POST"
        answer = self._run(method, f"/rpc/{name}", get or not function.volatile, statement, single)
        if isinstance(answer, Answer):
            return answer
        if function.void:
            return Answer(204)
        return _ranged(answer, read.offset)

    def _read(self, method: str, table: str, params: dict[str, str], count: bool, single: bool) -> Answer:
        rest = self.rest
        try:
            build.table_of(rest.cache, (rest.schema, table))
            read = read_of(table, list(params.items()), rest.max_rows)
            resolve(read, rest.cache, rest.schema)
            statement = build.main_read(read, count=count, single=single, head=method == "HEAD")
        except RequestError as e:
            return _refused(e)
        answer = self._run(method, f"/{table}", True, statement, single)
        return answer if isinstance(answer, Answer) else _ranged(answer, read.offset)

    def _write(
        self,
        kind: str,
        name: str,
        body: bytes,
        params: dict[str, str],
        single: bool,
        resolution: str | None,
        defaults: bool,
    ) -> Answer:
        rest = self.rest
        represented = "select" in params
        try:
            table = build.table_of(rest.cache, (rest.schema, name))
            # the filters are the mutation's; the read that follows shows what it returned
            read = read_of(name, list(params.items()), None)
            mutation = build.Mutation(
                kind, table, body, filters=read.filters, resolution=resolution, defaults=defaults
            )
            read.filters = []
            resolve(read, rest.cache, rest.schema, build.SOURCE)
            mutation.columns = _columns(body, params.get("columns"))
            for column in mutation.columns:
                if column not in table.columns:
                    message = f"Could not find the '{column}' column of '{name}' in the schema cache"
                    raise RequestError(400, "PGRST204", message)
            mutation.conflict = split(params["on_conflict"]) if "on_conflict" in params else table.pk
            mutation.returning = returning(read, table.pk) if represented else []
            statement = build.main_write(mutation, read, single=single, represented=represented)
        except RequestError as e:
            return _refused(e)
        method = {"insert": "POST", "update": "PATCH", "delete": "DELETE"}[kind]
        answer = self._run(method, f"/{name}", False, statement, single)
        if isinstance(answer, Answer):
            return answer
        if kind == "insert":
            merged = answer.inserted is not None and answer.inserted <= 0
            return Answer(200 if merged else 201, answer.body if represented else b"")
        return Answer(200, answer.body) if represented else Answer(204)

    def _run(
        self, method: str, path: str, read_only: bool, statement: build.Statement, single: bool
    ) -> "Answer | _Rows":
        conn = self.rest.conn
        mode = "READ ONLY" if read_only else "READ WRITE"
        conn.execute(f"BEGIN ISOLATION LEVEL READ COMMITTED {mode}".encode())
        try:
            cursor = RawCursor(conn, row_factory=tuple_row)
            settings = build.tx_vars(self._settings(method, path))
            cursor.execute(settings.text.encode(), settings.params, prepare=True)
            row = cursor.execute(statement.text.encode(), statement.params, prepare=True).fetchone()
            if single and (row is None or row[1] != 1):
                conn.execute("ROLLBACK")
                return _not_single(0 if row is None else row[1])
            conn.execute("COMMIT")
        except psycopg.Error as e:
            conn.rollback()
            return self._error(e)
        if row is None:
            return _Rows(None, 0, b"", None)
        body, inserted = row[-4], row[-1]
        total = None if row[0] in (None, "") else int(row[0])
        return _Rows(total, row[1], body or b"", None if inserted in (None, "") else int(inserted))

    def _settings(self, method: str, path: str) -> list[tuple[str, str]]:
        return [
            ("search_path", self.rest.search_path),
            ("role", self.claims["role"]),
            ("request.jwt.claims", json.dumps(self.claims)),
            ("request.method", method),
            ("request.path", path),
            ("request.headers", json.dumps(self.headers)),
            ("request.cookies", "{}"),
        ]

    def _error(self, error: psycopg.Error) -> Answer:
        state, diag = error.sqlstate or "", error.diag
        message = diag.message_primary or ""
        body = {"code": state, "details": diag.message_detail, "hint": diag.message_hint, "message": message}
        if state == "PGRST":
            return _raised(message, diag.message_detail)
        if state == "42501":
            status = 401 if self.claims["role"] == self.rest.anon_role else 403
        elif state == "21000":
            status = 400 if message.endswith("requires a WHERE clause") else 500
        elif state == "22023":
            status = 401 if message.startswith("role") and message.endswith("does not exist") else 400
        elif state.startswith("PT"):
            status = int(state[2:]) if state[2:].isdigit() else 500
        else:
            status = next((_STATUS[state[:n]] for n in (5, 2) if state[:n] in _STATUS), 400)
        return _problem(status, body)


@dataclass(frozen=True)
class _Rows:
    total: int | None
    page: int
    body: bytes
    inserted: int | None


def _ranged(rows: _Rows, offset: int) -> Answer:
    last = offset + rows.page - 1
    status = 200
    if rows.total is not None:
        if offset > rows.total:
            return _problem(
                416,
                {
                    "code": "PGRST103",
                    "details": None,
                    "hint": None,
                    "message": "Requested range not satisfiable",
                },
            )
        status = 206 if last + 1 - offset < rows.total else 200
    shown = f"{offset}-{last}" if rows.page and rows.total != 0 else "*"
    total = "*" if rows.total is None else str(rows.total)
    return Answer(status, rows.body, {"Content-Range": f"{shown}/{total}"})


def _raised(message: str, detail: str | None) -> Answer:
    """RAISE … USING ERRCODE = 'PGRST': the message and the detail are JSON."""
    try:
        said, how = json.loads(message), json.loads(detail or "")
        body = {
            "code": said["code"],
            "details": said.get("details"),
            "hint": said.get("hint"),
            "message": said["message"],
        }
        status, headers = how["status"], how["headers"]
    except (ValueError, KeyError, TypeError):
        return _problem(
            500,
            {
                "code": "PGRST121",
                "details": message,
                "hint": None,
                "message": "Could not parse JSON in the \"RAISE SQLSTATE 'PGRST'\" error",
            },
        )
    return _problem(status, body, headers)


def _not_single(rows: int) -> Answer:
    message = "Cannot coerce the result to a single JSON object"
    details = f"The result contains {rows} rows"
    return _problem(406, {"code": "PGRST116", "details": details, "hint": None, "message": message})


def _refused(error: RequestError) -> Answer:
    return _problem(error.status, error.body)


def _problem(status: int, body: Mapping[str, Any], headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode(), headers or {})


def _columns(body: bytes, named: str | None) -> list[str]:
    if not body:
        return []
    if named is not None:
        return [unquote(c) for c in split(named)]
    parsed = json.loads(body)
    rows = parsed if isinstance(parsed, list) else [parsed]
    if any(set(row) != set(rows[0]) for row in rows):
        raise RequestError(400, "PGRST102", "All object keys must match")
    return sorted({key for row in rows for key in row})


def _bytes(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()


def _raw(data: str | bytes) -> bytes:
    return data.encode() if isinstance(data, str) else bytes(data)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
