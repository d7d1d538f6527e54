"""docs/api.md from the OpenAPI document. It needs the extra `api`."""

from typing import Any

from meshaudit.api.app import create
from meshaudit.api.settings import Settings

HEAD = """\
# The HTTP API

<!-- Generated from the OpenAPI document by `make generate`; do not edit. -->

`meshaudit serve` serves it: the document at `/openapi.json`, a page to try it at `/docs`. {about}
A token is a JWT in `Authorization: Bearer …`, with `exp`, `role` (a database role that the server's login
may take) and
`sub` (who it is for). {scheme}
"""


def render() -> str:
    """The whole page."""
    _, app = create(Settings(jwt_secret="x" * 32))
    document = app.openapi()
    about = document["info"]["description"].partition("\n\n")[2].strip().replace("\n", " ")
    lines = [
        HEAD.format(
            about=about, scheme="Its signature is HS256, RS256 or ES256, as the server is configured."
        )
    ]
    for path, item in document["paths"].items():
        for method, operation in item.items():
            lines += _operation(method.upper(), path, operation)
    lines += ["## Schemas", ""]
    for name in ("Entry", "Page", "Status", "Check", "ProblemDocument"):
        lines += _schema(name, document["components"]["schemas"][name])
    return "\n".join(lines).rstrip() + "\n"


def _operation(method: str, path: str, operation: dict[str, Any]) -> list[str]:
    lines = [f"## {method} {path}", "", operation["summary"] + ".", "", operation.get("description", ""), ""]
    if "security" not in operation:
        lines += ["Takes no token.", ""]
    if parameters := operation.get("parameters"):
        lines += ["| parameter | in | meaning | example |", "|---|---|---|---|"]
        for parameter in parameters:
            examples = " ".join(f"`{e['value']}`" for e in parameter.get("examples", {}).values())
            name, place, text = parameter["name"], parameter["in"], parameter.get("description", "")
            lines.append(f"| `{name}` | {place} | {text} | {examples} |")
        lines.append("")
    lines += ["| status | body | when |", "|---|---|---|"]
    for status, answer in operation["responses"].items():
        kinds = ", ".join(f"`{kind}`" for kind in answer.get("content", {}))
        lines.append(f"| {status} | {kinds} | {answer['description']} |")
    return [*lines, ""]


def _schema(name: str, schema: dict[str, Any]) -> list[str]:
    lines = [
        f"### {name}",
        "",
        schema.get("description", ""),
        "",
        "| member | type | meaning |",
        "|---|---|---|",
    ]
    for key, member in schema["properties"].items():
        lines.append(f"| `{key}` | {_type(member)} | {member.get('description', '')} |")
    return [*lines, ""]


def _type(member: dict[str, Any]) -> str:
    if "anyOf" in member:
        return " or ".join(_type(choice) for choice in member["anyOf"])
    if "$ref" in member:
        return str(member["$ref"].rpartition("/")[2])
    if "enum" in member:
        return ", ".join(f"`{value}`" for value in member["enum"])
    if member.get("type") == "array":
        return f"array of {_type(member['items'])}"
    return str(member.get("format", member.get("type", "")))
