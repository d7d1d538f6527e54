"""The statements that PostgREST makes of a request (v12.2 to v14; where they differ, `version` decides).

Written from what those versions send: the same CTEs, joins, JSON aggregates and parameters, in the same places.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from psycopg.types.json import Json, Jsonb

from tests.postgrest.cache import Function, Qi, SchemaCache, Table
from tests.postgrest.plan import Field, Filter, Read, RequestError, returning, split, unquote

SOURCE = "pgrst_source"
NO_LOCATION = "array[]::text[]"

_OPERATORS = {
    "eq": "=", "neq": "<>", "gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "like": "like", "ilike": "ilike",
    "match": "~", "imatch": "~*", "cs": "@>", "cd": "<@", "ov": "&&",
}  # fmt: skip


@dataclass
class Statement:
    """A statement's text and its parameters, numbered as they are met."""

    params: list[Any] = field(default_factory=list)
    text: str = ""

    def param(self, value: Any) -> str:
        """The placeholder for a value; a str is of unknown type, as PostgREST's literals are."""
        self.params.append(value)
        return f"${len(self.params)}"


@dataclass
class Mutation:
    """What a POST, PATCH or DELETE asks for."""

    kind: str
    table: Table
    body: bytes = b""
    columns: list[str] = field(default_factory=list)
    filters: list[Filter] = field(default_factory=list)
    returning: list[str] = field(default_factory=list)
    resolution: str | None = None
    conflict: list[str] = field(default_factory=list)
    defaults: bool = False


def ident(name: str) -> str:
    """A quoted name."""
    return '"' + name.replace('"', '""') + '"'


def qualified(qi: Qi) -> str:
    """A quoted name with its schema, if it has one."""
    return f"{ident(qi[0])}.{ident(qi[1])}" if qi[0] else ident(qi[1])


def column(qi: Qi, name: str) -> str:
    """A column of that table, or all."""
    return f"{qualified(qi)}.{'*' if name == '*' else ident(name)}"


def tx_vars(settings: list[tuple[str, str]]) -> Statement:
    """The one statement that sets everything of a request."""
    s = Statement()
    s.text = "select " + ", ".join(
        f"set_config('{name}', {s.param(value)}, true)" for name, value in settings
    )
    return s


def main_read(read: Read, *, count: bool, single: bool, head: bool) -> Statement:
    """GET or HEAD of a table."""
    s = Statement()
    source = _read(s, read)
    counted, total = _count(s, read, count)
    s.text = (
        f"WITH {SOURCE} AS ( {source} ) {counted} SELECT {total} AS total_result_set, "
        f"pg_catalog.count(_postgrest_t) AS page_total, {_handler(None, single, head)} AS body, {_guc()}, "
        f"'' AS response_inserted FROM ( SELECT * FROM {SOURCE} ) _postgrest_t"
    )
    return s


def main_write(mutation: Mutation, read: Read, *, single: bool, represented: bool) -> Statement:
    """POST, PATCH or DELETE of a table."""
    s = Statement()
    mutate = _mutate(s, mutation)
    merging = mutation.kind == "insert" and mutation.resolution == "merge-duplicates"
    inserted = "nullif(current_setting('pgrst.inserted', true),'')::int" if merging else "''"
    select = _read(s, read) if represented else f"SELECT * FROM {SOURCE}"
    s.text = (
        f"WITH {SOURCE} AS ({mutate}) SELECT '' AS total_result_set, pg_catalog.count(_postgrest_t) AS page_total, "
        f"{NO_LOCATION} AS header, {_handler(None, single, not represented)} AS body, {_guc()}, "
        f"{inserted} AS response_inserted FROM ({select}) _postgrest_t"
    )
    return s


def main_call(
    function: Function, args: dict[str, str] | bytes, read: Read, *, count: bool, single: bool, version: int
) -> Statement:
    """An RPC: args are a query string's (GET) or a JSON body (POST)."""
    s = Statement()
    call = _call(s, function, args, read, version)
    counted, total = _count(s, read, count)
    pages = "1" if not function.returns_set else "pg_catalog.count(_postgrest_t)"
    s.text = (
        f"WITH {SOURCE} AS ({call}) {counted}SELECT {total} AS total_result_set, {pages} AS page_total, "
        f"{_handler(function, single, head=False)} AS body, {_guc()}, '' AS response_inserted "
        f"FROM ({_read(s, read)}) _postgrest_t"
    )
    return s


def _guc() -> str:
    return (
        "nullif(current_setting('response.headers', true), '') AS response_headers, "
        "nullif(current_setting('response.status', true), '') AS response_status"
    )


def _handler(function: Function | None, single: bool, head: bool) -> str:
    if head:
        return "''::text"
    if function is not None and function.scalar:
        return "coalesce(json_agg(_postgrest_t.pgrst_scalar)->0, 'null')"
    if single or (function is not None and function.composite and not function.returns_set):
        return "coalesce(json_agg(_postgrest_t)->0, 'null')"
    if function is not None and function.set_of_scalar:
        return "coalesce(json_agg(_postgrest_t.pgrst_scalar), '[]')"
    return "coalesce(json_agg(_postgrest_t), '[]')"


def _read(s: Statement, node: Read) -> str:
    fields = [_field(s, node.qi, f) for f in node.fields]
    joins = ""
    for child in node.embeds:
        fields += _embedded(child)
        joins += _join(s, child)
    source = qualified(node.table) + (f" AS {ident(node.sql_alias)}" if node.sql_alias else "")
    where = _where(s, node)
    order = ""
    if node.order:
        order = "ORDER BY " + ", ".join(f"{column(node.qi, name)} {how}" for name, how in node.order)
    limits = ""
    if node.limit is not None or node.offset:
        limit = "ALL" if node.limit is None else s.param(str(node.limit))
        limits = f"LIMIT {limit} OFFSET {s.param(str(node.offset))}"
    return f"SELECT {', '.join(fields)} FROM {source}{joins}{where} {order} {limits}"


def _where(s: Statement, node: Read) -> str:
    conditions = [_filter(s, node.qi, f) for f in node.filters]
    if node.rel is not None:
        pairs = node.rel.columns
        conditions += [f"{column(node.qi, far)} = {column(node.parent_qi, near)}" for near, far in pairs]
    return " WHERE " + " AND ".join(conditions) if conditions else ""


def _embedded(child: Read) -> list[str]:
    alias = ident(child.agg_alias)
    if child.spread:
        return [f"{alias}.{'*' if f.name == '*' else ident(f.alias or f.name)}" for f in child.fields]
    if child.rel is not None and child.rel.to_one:
        return [f"row_to_json({alias}.*)::jsonb AS {ident(child.key)}"]
    return [f"COALESCE( {alias}.{alias}, '[]') AS {ident(child.key)}"]


def _join(s: Statement, child: Read) -> str:
    alias = ident(child.agg_alias)
    kind = "INNER" if child.inner else "LEFT"
    if child.rel is not None and child.rel.to_one:
        return f" {kind} JOIN LATERAL ( {_read(s, child)} ) AS {alias} ON TRUE"
    on = f"{alias} IS NOT NULL" if child.inner else "TRUE"
    inner = f"SELECT json_agg({alias})::jsonb AS {alias} FROM ({_read(s, child)} ) AS {alias}"
    return f" {kind} JOIN LATERAL ( {inner} ) AS {alias} ON {on}"


def _count(s: Statement, read: Read, wanted: bool) -> tuple[str, str]:
    if not wanted:
        return "", "null::bigint"
    return (
        f", pgrst_source_count AS ({_count_query(s, read)})",
        "(SELECT pg_catalog.count(*) FROM pgrst_source_count)",
    )


def _count_query(s: Statement, node: Read) -> str:
    source = qualified(node.table) + (f" AS {ident(node.sql_alias)}" if node.sql_alias else "")
    conditions = _where(s, node).removeprefix(" WHERE ")
    inner = [f"EXISTS ({_count_query(s, child)} )" for child in node.embeds if child.inner]
    where = " AND ".join([*([conditions] if conditions else []), *inner])
    return f"SELECT 1  FROM {source}" + (f" WHERE {where}" if where else "")


def _field(s: Statement, qi: Qi, f: Field) -> str:
    text = column(qi, f.name)
    if f.path:
        text = _path(s, f"to_jsonb({text})", f.path)
    if f.cast:
        text = f"CAST( {text} AS {f.cast} )"
    return text + (f" AS {ident(f.alias)}" if f.alias else "")


def _path(s: Statement, text: str, path: list[tuple[str, str]]) -> str:
    for arrow, step in path:
        text += f"-{arrow}{s.param(step)}" + ("::int" if step.lstrip("-").isdigit() else "")
    return text


def _filter(s: Statement, qi: Qi, f: Filter) -> str:
    left = column(qi, f.column)
    if f.path:
        left = _path(s, f"to_jsonb({left})", f.path)
    left = ("NOT " if f.negated else " ") + left
    if f.operator == "is":
        words = {
            "null": "NULL",
            "not_null": "NOT NULL",
            "true": "TRUE",
            "false": "FALSE",
            "unknown": "UNKNOWN",
        }
        return f"{left} IS {words[f.value]}"
    if f.operator == "in":
        items = [unquote(i) for i in split(f.value.removeprefix("(").removesuffix(")"))]
        escaped = ('"' + i.replace("\\", "\\\\").replace('"', '\\"') + '"' for i in items)
        return f"{left} = ANY ({s.param('{' + ','.join(escaped) + '}')}) "
    value = f.value.replace("*", "%") if f.operator in ("like", "ilike") else f.value
    if f.operator not in _OPERATORS:
        raise RequestError(
            400, "PGRST100", f'"failed to parse filter ({f.operator}.{f.value})" (line 1, column 1)'
        )
    return f"{left} {_OPERATORS[f.operator]} {s.param(value)}"


def _mutate(s: Statement, m: Mutation) -> str:
    target = qualified(m.table.qi)
    types = {c: m.table.columns[c].type for c in m.columns}
    back = ", ".join(column(m.table.qi, c) for c in m.returning) if m.returning else "1"
    if m.kind == "insert":
        names = ", ".join(ident(c) for c in m.columns)
        body = _json_body(s, m.body, types, m.table if m.defaults else None, select=True)
        merging = m.resolution == "merge-duplicates"
        text = f"INSERT INTO {target}" + (f"({names}) " if names else " ") + body
        if merging:
            text += "WHERE " + _inserted("+", "0")
        if m.resolution and m.conflict:
            sets = ", ".join(f"{ident(c)} = EXCLUDED.{ident(c)}" for c in m.columns)
            how = f"DO UPDATE SET {sets}WHERE {_inserted('-', '-1')}" if merging and sets else "DO NOTHING"
            text += f" ON CONFLICT({', '.join(ident(c) for c in m.conflict)}) {how}"
        return f"{text} RETURNING {back}"
    conditions = [_filter(s, m.table.qi, f) for f in m.filters] if m.kind == "delete" else []
    if m.kind == "delete":
        where = " WHERE " + " AND ".join(conditions) if conditions else ""
        return f"DELETE FROM {target} {where} RETURNING {back}"
    sets = ", ".join(f'{ident(c)} = "pgrst_body".{ident(c)}' for c in m.columns)
    body = _json_body(s, m.body, types, m.table if m.defaults else None)
    conditions = [_filter(s, m.table.qi, f) for f in m.filters]
    where = " WHERE " + " AND ".join(conditions) if conditions else ""
    return f"UPDATE {target} SET {sets} {body}{where} RETURNING {back}"


def _inserted(sign: str, number: str) -> str:
    current = "nullif(current_setting('pgrst.inserted', true), '')"
    return f"set_config('pgrst.inserted', (coalesce({current}::int, 0) {sign} 1)::text, true) <> '{number}'"


def _json_body(
    s: Statement,
    body: bytes,
    types: dict[str, str],
    defaults: Table | None,
    *,
    select: bool = False,
    one: bool = False,
) -> str:
    is_object = body.lstrip()[:1] == b"{"
    json_, wrap = ("jsonb", Jsonb) if defaults else ("json", Json)
    payload = s.param(wrap(body, dumps=_as_it_is))
    value, lateral = "pgrst_payload.json_data", ""
    if defaults:
        pairs = (f"{_literal(c)}, {d}" for c in types if (d := defaults.columns[c].default) is not None)
        built = f"jsonb_build_object({','.join(pairs)})"
        value = "pgrst_json_defs.val"
        lateral = (
            f"LATERAL (SELECT {built} || pgrst_payload.json_data AS val) pgrst_json_defs, "
            if is_object
            else f"LATERAL (SELECT jsonb_agg({built} || elem) AS val "
            "from jsonb_array_elements(pgrst_payload.json_data) elem) pgrst_json_defs, "
        )
    if types:
        to_record = f"{json_}_to_record" + ("" if is_object else "set")
        typed = ", ".join(f"{ident(c)} {t}" for c, t in types.items())
        source = f"{to_record}({value}) AS _({typed}) " + ("LIMIT 1" if one else "")
    else:
        source = "(values(1)) _ " if is_object else f"{json_}_array_elements({value}) _ "
    names = ", ".join(ident(c) for c in types)
    selected = ", ".join(f'"pgrst_body".{ident(c)}' for c in types)
    return (
        (f"SELECT {selected} " if select else "")
        + f"FROM (SELECT {payload} AS json_data) pgrst_payload, {lateral}"
        + f"LATERAL (SELECT {names} FROM {source}) pgrst_body "
    )


def _call(s: Statement, function: Function, args: dict[str, str] | bytes, read: Read, version: int) -> str:
    if isinstance(args, dict) and version < 14:
        args = json.dumps(args).encode()
    given = args if isinstance(args, dict) else json.loads(args or b"{}")
    names = [p for p in function.params if p in given]
    if not names:
        source = "FROM " + _called(function, "")
    elif isinstance(args, dict):
        direct = ", ".join(f"{ident(p)} := {s.param(args[p])}::{function.params[p]}" for p in names)
        source = "FROM " + _called(function, direct)
    else:
        types = {p: function.params[p] for p in names}
        body = _json_body(s, args, types, None, one=True)
        passed = ", ".join(f"{ident(p)} := pgrst_body.{ident(p)}" for p in names)
        source = f"{body}, LATERAL {_called(function, passed)}"
    if not function.composite:
        return f"SELECT pgrst_call.pgrst_scalar {source}"
    wanted = returning(read, [])
    wanted = ["*"] if wanted == ["*"] else sorted({*wanted, *(f.column for f in read.filters)})
    return f"SELECT {', '.join(column(('', 'pgrst_call'), c) for c in wanted)} {source}"


def _called(function: Function, args: str) -> str:
    call = f"{qualified(function.qi)}({args})"
    return f"{call} pgrst_call" if function.composite else f"(SELECT {call} pgrst_scalar) pgrst_call"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _as_it_is(body: bytes) -> bytes:
    return body


def table_of(cache: SchemaCache, qi: Qi) -> Table:
    """The table of that name, or the refusal."""
    if qi not in cache.tables:
        raise RequestError(404, "PGRST205", f"Could not find the table '{qi[0]}.{qi[1]}' in the schema cache")
    return cache.tables[qi]
