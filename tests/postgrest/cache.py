"""What PostgREST knows of a database: tables and views, keys, relationships, functions.

Views are seen as PostgREST sees them: a view's column is the column of a table only if the stored rule of the view
says so (a plain reference, through other views too). So a key that becomes an expression loses its relationships here,
as it does there.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg

Qi = tuple[str, str]

_TOKEN = re.compile(r"[(){}]|(?:\\.|[^\s(){}\\])+", re.DOTALL)

_COLUMNS = """
select n.nspname, c.relname, c.oid, c.relkind in ('v', 'm'), a.attname, a.attnum, format_type(a.atttypid, a.atttypmod),
  case when a.attidentity = 'd' then format('nextval(%L)', pg_get_serial_sequence(format('%I.%I', n.nspname, c.relname), a.attname))
       when a.attgenerated = 's' then null
       else pg_get_expr(d.adbin, d.adrelid) end
from pg_class c join pg_namespace n on n.oid = c.relnamespace
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
where c.relkind in ('v', 'r', 'm', 'f', 'p') and not c.relispartition
  and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
order by c.oid, a.attnum
"""

_KEYS = """
select conname, contype::text, conrelid, conkey, confrelid, confkey,
  exists (select from pg_constraint u where u.conrelid = k.conrelid and u.contype in ('p', 'u') and u.conkey = k.conkey)
from pg_constraint k where contype in ('p', 'f') and conparentid = 0
order by conrelid, conname
"""

_RULES = """
select c.oid, r.ev_action::text from pg_class c join pg_rewrite r on r.ev_class = c.oid
where c.relkind in ('v', 'm') and r.ev_type = '1'
"""

_FUNCTIONS = """
select n.nspname, p.proname, p.provolatile::text, p.proretset, t.typtype = 'c' or t.oid = 'record'::regtype,
  p.prorettype = 'void'::regtype,
  (select rc.relname from pg_class rc where rc.oid = t.typrelid),
  p.pronargs - p.pronargdefaults, coalesce(p.proargnames[1:p.pronargs], '{}'),
  array(select format_type(a.t, null) from unnest(p.proargtypes) with ordinality a (t, i) order by i)
from pg_proc p join pg_namespace n on n.oid = p.pronamespace join pg_type t on t.oid = p.prorettype
where p.prokind = 'f' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
"""


@dataclass
class Column:
    """A column: the type that JSON is read as, and its default."""

    name: str
    type: str
    default: str | None


@dataclass
class Table:
    """A table or a view; a view's primary key is that of the table it shows, if it shows all of it."""

    qi: Qi
    is_view: bool
    columns: dict[str, Column] = field(default_factory=dict)
    pk: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Relationship:
    """How one table is joined to another; `columns` are pairs, this side first."""

    table: Qi
    foreign: Qi
    constraint: str
    columns: tuple[tuple[str, str], ...]
    to_one: bool
    foreign_is_view: bool


@dataclass(frozen=True)
class Function:
    """A function as an RPC."""

    qi: Qi
    volatile: bool
    returns_set: bool
    composite: bool
    void: bool
    returns_table: str | None
    required: int
    params: dict[str, str]

    @property
    def scalar(self) -> bool:
        """Returns one value."""
        return not self.composite and not self.returns_set

    @property
    def set_of_scalar(self) -> bool:
        """Returns a column of values."""
        return not self.composite and self.returns_set


class SchemaCache:
    """Read once, as PostgREST does at its start and when notified: see Rest.reload()."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self.tables: dict[Qi, Table] = {}
        self.functions: list[Function] = []
        self.relationships: list[Relationship] = []
        self._by_oid: dict[int, Table] = {}
        self._attributes: dict[int, dict[int, str]] = {}
        self._sources: dict[int, dict[int, tuple[int, int]]] = {}
        with conn.transaction():
            self._read_tables(conn)
            self._read_functions(conn)
            self._read_keys(conn)

    def relationship(self, schema: str, origin: str, target: str, hint: str | None) -> list[Relationship]:
        """Those that a `target!hint(…)` in a select of `origin` can mean."""

        def names(r: Relationship, name: str) -> bool:
            return name == r.constraint or (len(r.columns) == 1 and name == r.columns[0][0])

        def fits(r: Relationship) -> bool:
            if hint is not None:
                far = len(r.columns) == 1 and hint == r.columns[0][1]
                return target == r.foreign[1] and (names(r, hint) or far)
            return target == r.foreign[1] or (names(r, target) and not r.foreign_is_view)

        between = (r for r in self.relationships if r.table == (schema, origin) and r.foreign[0] == schema)
        return [r for r in between if fits(r)]

    def function(self, qi: Qi, given: set[str]) -> Function | None:
        """The function of that name that takes those parameters."""
        for f in self.functions:
            names = list(f.params)
            if f.qi == qi and given <= set(names) and set(names[: f.required]) <= given:
                return f
        return None

    def _read_tables(self, conn: psycopg.Connection[Any]) -> None:
        for schema, name, oid, is_view, column, number, type_, default in conn.execute(_COLUMNS):
            table = self._by_oid.setdefault(oid, Table((schema, name), is_view))
            table.columns[column] = Column(column, type_, default)
            self._attributes.setdefault(oid, {})[number] = column
            self.tables[table.qi] = table

    def _read_functions(self, conn: psycopg.Connection[Any]) -> None:
        for schema, name, volatile, retset, composite, void, table, required, names, types in conn.execute(
            _FUNCTIONS
        ):
            params = dict(zip(names, types, strict=False))
            if len(names) == len(types) and "" not in params:
                function = Function(
                    (schema, name), volatile == "v", retset, composite, void, table, required, params
                )
                self.functions.append(function)

    def _read_keys(self, conn: psycopg.Connection[Any]) -> None:
        for oid, rule in conn.execute(_RULES).fetchall():
            self._sources[oid] = plain_columns(rule)
        foreign_keys = []
        for name, kind, oid, key, far_oid, far_key, unique in conn.execute(_KEYS).fetchall():
            if kind == "f":
                foreign_keys.append((name, oid, key, far_oid, far_key, unique))
            elif oid in self._by_oid:
                for table, columns in self._seen_as(oid, key):
                    table.pk = table.pk or columns
        for name, oid, key, far_oid, far_key, unique in foreign_keys:
            for near, near_columns in self._seen_as(oid, key):
                for far, far_columns in self._seen_as(far_oid, far_key):
                    pairs = tuple(zip(near_columns, far_columns, strict=True))
                    back = tuple((b, a) for a, b in pairs)
                    self.relationships += [
                        Relationship(near.qi, far.qi, name, pairs, True, far.is_view),
                        Relationship(far.qi, near.qi, name, back, unique, near.is_view),
                    ]

    def _seen_as(self, oid: int, key: list[int]) -> Iterator[tuple[Table, list[str]]]:
        """The table of that oid and every view that shows all columns of the key, with their names there."""
        if oid in self._by_oid:
            yield self._by_oid[oid], [self._attributes[oid][n] for n in key]
        for view, table in self._by_oid.items():
            if not table.is_view:
                continue
            columns: list[str] = []
            for number in key:
                shown = (n for n in self._attributes[view] if self._origin(view, n) == (oid, number))
                columns += [self._attributes[view][n] for n in shown][:1]
            if len(columns) == len(key):
                yield table, columns

    def _origin(self, oid: int, number: int) -> tuple[int, int]:
        while source := self._sources.get(oid, {}).get(number):
            oid, number = source
        return oid, number


def plain_columns(rule: str) -> dict[int, tuple[int, int]]:
    """Of a view's stored rule: the columns that are a table's or view's column as it is, and of which."""
    (query,) = _node(iter(_TOKEN.findall(rule)))[0]
    found = {}
    for entry in query["targetList"]:
        number, table, column = (int(entry[k]) for k in ("resno", "resorigtbl", "resorigcol"))
        if table and entry["resjunk"] == "false":
            found[number] = (table, column)
    return found


def _node(tokens: Iterator[str], closing: str | None = None) -> tuple[list[Any], None]:
    """The text form of a node tree: lists in (), nodes in {NAME :field value …}, the rest as strings."""
    items: list[Any] = []
    for token in tokens:
        if token == closing:
            return items, None
        if token == "(":
            items.append(_node(tokens, ")")[0])
        elif token == "{":
            items.append(_fields(_node(tokens, "}")[0]))
        else:
            items.append(token)
    # the whole rule is one list
    return items[0], None


def _fields(items: list[Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    name = ""
    for item in items[1:]:
        if isinstance(item, str) and item.startswith(":"):
            name = item[1:]
        elif name and name not in fields:
            fields[name] = item
    return fields
