"""From a request's query string to a tree of reads: `select`, filters, `order`, `limit`, `offset`."""

from dataclasses import dataclass, field

from tests.postgrest.cache import Qi, Relationship, SchemaCache


class RequestError(Exception):
    """What PostgREST refuses before it asks the database."""

    def __init__(self, status: int, code: str, message: str, details: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "details": details, "hint": None, "message": message}


@dataclass
class Field:
    """A column in a select: `alias:name->path::cast`."""

    name: str
    alias: str | None = None
    cast: str | None = None
    path: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Filter:
    """`column=operator.value`"""

    column: str
    negated: bool
    operator: str
    value: str
    path: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Read:
    """One table of a read, and those embedded in it."""

    name: str
    alias: str | None = None
    hint: str | None = None
    inner: bool = False
    spread: bool = False
    depth: int = 0
    fields: list[Field] = field(default_factory=list)
    embeds: list["Read"] = field(default_factory=list)
    filters: list[Filter] = field(default_factory=list)
    order: list[tuple[str, str]] = field(default_factory=list)
    limit: int | None = None
    offset: int = 0
    # what resolve() finds
    table: Qi = ("", "")
    sql_alias: str | None = None
    agg_alias: str = ""
    rel: Relationship | None = None
    origin: Qi = ("", "")
    parent_qi: Qi = ("", "")

    @property
    def key(self) -> str:
        """Its name in the answer."""
        return self.alias or self.name

    @property
    def qi(self) -> Qi:
        """What its columns are qualified with."""
        return ("", self.sql_alias) if self.sql_alias else self.table


def read_of(name: str, params: list[tuple[str, str]], max_rows: int | None) -> Read:
    """The tree that a query string asks for."""
    root = Read(name)
    for key, value in params:
        if key == "select":
            _select(root, value)
    if not root.fields and not root.embeds:
        root.fields = [Field("*")]
    for key, value in params:
        *path, last = key.split(".")
        node = _descend(root, path)
        if last == "order":
            node.order = [_order(term) for term in split(value)]
        elif last == "limit":
            node.limit = int(value)
        elif last == "offset":
            node.offset = int(value)
        elif last not in ("select", "columns", "on_conflict"):
            node.filters.append(_filter(last, value))
    if max_rows is not None:
        _restrict(root, max_rows)
    return root


def resolve(node: Read, cache: SchemaCache, schema: str, source: str | None = None) -> None:
    """Find the relationships. `source` is the CTE that the root reads from, after a mutation or a call."""
    if node.depth == 0:
        node.origin = (schema, node.name)
        node.table = ("", source) if source else node.origin
        node.sql_alias = node.name if source else None
    for child in node.embeds:
        child.depth = node.depth + 1
        found = cache.relationship(schema, node.origin[1], child.name, child.hint)
        if not found:
            message = f"Could not find a relationship between '{node.origin[1]}' and '{child.name}' in the schema cache"
            raise RequestError(400, "PGRST200", message)
        if len(found) > 1:
            message = f"Could not embed because more than one relationship was found for '{node.name}' and '{child.name}'"
            raise RequestError(300, "PGRST201", message)
        child.rel = found[0]
        child.parent_qi = node.qi
        child.origin = child.table = found[0].foreign
        child.sql_alias = f"{child.table[1]}_{child.depth}"
        child.agg_alias = f"{found[0].table[1]}_{child.key}_{child.depth}"
        resolve(child, cache, schema)


def returning(node: Read, pk: list[str]) -> list[str]:
    """The columns that a mutation must return for the select that follows it."""
    names = {f.name for f in node.fields}
    if "*" in names:
        return ["*"]
    keys = {near for child in node.embeds if child.rel for near, _ in child.rel.columns}
    return sorted(names | keys | set(pk))


def split(text: str) -> list[str]:
    """At commas outside of parentheses and quotes."""
    parts, depth, quoted, start = [], 0, False, 0
    for i, c in enumerate(text):
        if c == '"':
            quoted = not quoted
        elif not quoted:
            depth += (c == "(") - (c == ")")
            if c == "," and depth == 0:
                parts.append(text[start:i])
                start = i + 1
    parts.append(text[start:])
    return [p.strip() for p in parts if p.strip()]


def unquote(text: str) -> str:
    """A quoted name or list item as it is meant."""
    if text.startswith('"') and text.endswith('"') and len(text) > 1:
        return text[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return text


def _select(node: Read, text: str) -> None:
    for item in split(text):
        if item.endswith(")"):
            head, _, inner = item[:-1].partition("(")
            child = _embed(head)
            _select(child, inner)
            node.embeds.append(child)
        else:
            node.fields.append(_field(item))


def _embed(head: str) -> Read:
    spread = head.startswith("...")
    alias, name = _aliased(head.removeprefix("..."))
    name, *modifiers = name.split("!")
    hint = next((m for m in modifiers if m not in ("inner", "left")), None)
    return Read(unquote(name), alias, hint, inner="inner" in modifiers, spread=spread)


def _field(item: str) -> Field:
    item, _, cast = item.partition("::") if not item.startswith('"') else (item, "", "")
    alias, name = _aliased(item)
    name, path = _json_path(name)
    if path and alias is None:
        alias = path[-1][1]
    return Field(unquote(name), alias, cast or None, path)


def _aliased(text: str) -> tuple[str | None, str]:
    if text.startswith('"'):
        end = text.index('"', 1) + 1
        if not text[end:].startswith(":"):
            return None, text
        return unquote(text[:end]), text[end + 1 :]
    alias, colon, name = text.partition(":")
    return (alias, name) if colon else (None, text)


def _json_path(text: str) -> tuple[str, list[tuple[str, str]]]:
    name, *steps = text.replace("->>", "\0>>").replace("->", "\0>").split("\0")
    return name, [(">>", s[2:]) if s.startswith(">>") else (">", s[1:]) for s in steps]


def _order(term: str) -> tuple[str, str]:
    name, *words = term.split(".")
    known = {"asc": "ASC", "desc": "DESC", "nullsfirst": "NULLS FIRST", "nullslast": "NULLS LAST"}
    return unquote(name), " ".join(known[w] for w in words)


def _filter(column: str, value: str) -> Filter:
    operator, _, value = value.partition(".")
    negated = operator == "not"
    if negated:
        operator, _, value = value.partition(".")
    name, path = _json_path(column)
    return Filter(unquote(name), negated, operator, value, path)


def _descend(node: Read, path: list[str]) -> Read:
    for name in path:
        node = next(child for child in node.embeds if child.key == name)
    return node


def _restrict(node: Read, max_rows: int) -> None:
    node.limit = max_rows if node.limit is None else min(node.limit, max_rows)
    for child in node.embeds:
        _restrict(child, max_rows)
