"""schemathesis against the served OpenAPI document: requests that it allows, and that it forbids.

`make fuzz-api` takes some minutes; the test has a short version. Streams are told to end soon: a reader of
HTTP waits for
an answer's end.
"""

import os
import sys
from typing import Any

import psycopg
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import Phase as HypothesisPhase
from schemathesis.checks import CHECKS, load_all_checks

from meshaudit.server import Server
from tests.api_support import SECRET, Api, bearer
from tests.cli_support import ok

# Its own rules that the document cannot say: from < to; date_range excludes from and to; times and
# addresses exist.
_LEFT_OUT = ("positive_data_acceptance", "negative_data_rejection")
_EXAMPLES = 200


def checks() -> list[Any]:
    """All checks but those."""
    load_all_checks()
    return [check for check in CHECKS.get_all() if check.__name__ not in _LEFT_OUT]


def fuzz(api: Api, subject: str, examples: int) -> list[str]:
    """Ask each operation so many times; returns which were asked. Raises on the first failure."""
    schema = schemathesis.openapi.from_url(f"{api.url}/openapi.json")
    asked = []
    for result in schema.get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]
        _ask(operation, bearer(subject), examples)
        asked.append(operation.label)
    return asked


def _ask(operation: Any, who: dict[str, str], examples: int) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[HypothesisPhase.explicit, HypothesisPhase.generate],
    )
    @given(case=operation.as_strategy())
    def run(case: Any) -> None:
        case.call_and_validate(headers=who, checks=checks(), timeout=30)

    run()


def main() -> None:
    """The long version, on a server of its own."""
    examples = int(os.environ.get("EXAMPLES", _EXAMPLES))
    with Server.temporary() as server:
        ok("migrate", dsn=server.dsn())
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute(
                "create role authenticated nologin; create role gate login noinherit password 'x';"
                "grant authenticated to gate; select meshaudit.set_setting('gateway_roles', 'gate');"
                "select meshaudit.grant_auditor('fuzz')"
            )
        dsn = psycopg.conninfo.make_conninfo(server.dsn(), user="gate", password="x")
        api = Api(dsn, "--stream-for", "0.2", env={"MESHAUDIT_JWT_SECRET": SECRET})
        try:
            for label in fuzz(api, "fuzz", examples):
                print(f"{label}: {examples} requests, no failure", flush=True)
        finally:
            _, said = api.stop()
            sys.stderr.write(said)


if __name__ == "__main__":
    main()
