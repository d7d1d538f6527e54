"""The HTTP API: what it shows, to whom, and how it refuses."""

import csv
import io
import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from starlette.datastructures import Headers

from meshaudit.api.gate import Gate
from meshaudit.api.settings import Settings, networks
from meshaudit.output import stamp
from tests.api_support import Api, audited, bearer, problem, serving
from tests.flavours import Templates
from tests.support import Db

ALL, ONE, TWO = bearer("sees-all"), bearer("sees-one"), bearer("sees-two")


@pytest.fixture(scope="module")
def api_db(template: Templates) -> Iterator[Db]:
    with audited(template) as db:
        yield db


@pytest.fixture(scope="module")
def api(api_db: Db) -> Iterator[Api]:
    row = api_db.su.execute("select name from public.login").fetchone()
    assert row is not None
    with serving(api_db, "--max-requests", "40", login=row[0]) as running:
        yield running


def ids(api: Api, who: dict[str, str], **params: Any) -> list[int]:
    found, cursor = [], None
    while True:
        page = api.get("/api/audit-logs", who, **params, **({"cursor": cursor} if cursor else {}))
        assert page.status_code == 200, page.text
        found += [item["id"] for item in page.json()["items"]]
        cursor = page.json()["next_cursor"]
        if cursor is None:
            return found


def in_scope(db: Db, scope: str) -> list[int]:
    rows = db.su.execute(
        "select id from meshaudit.audit_logs where scope = %s order by timestamp desc, id desc", [scope]
    )
    return [id for (id,) in rows]


def test_pages_are_the_log(api: Api, api_db: Db) -> None:
    assert ids(api, ONE, limit=2) == in_scope(api_db, "one")
    assert ids(api, TWO, limit=1) == in_scope(api_db, "two")
    entry = api.get("/api/audit-logs", ONE, limit=1).json()["items"][0]
    row = api_db.su.execute("select * from meshaudit.audit_logs where id = %s", [entry["id"]])
    names = [column.name for column in row.description or ()]
    assert list(entry) == names
    wanted = dict(zip(names, row.fetchone() or (), strict=True))
    assert entry["hash"] == wanted["hash"].hex()
    assert entry["timestamp"] == stamp(wanted["timestamp"])
    assert entry["ip_address"] == str(wanted["ip_address"])
    assert api.get(f"/api/audit-logs/{entry['id']}", ONE).json() == entry


def test_an_auditor_never_sees_anothers_entries(api: Api, api_db: Db) -> None:
    hidden = set(in_scope(api_db, "two"))
    secrets = {
        s for (s,) in api_db.su.execute("select secret_id from meshaudit.audit_logs where scope = 'two'")
    }
    now = "2000-01-01/.."
    filters: list[dict[str, Any]] = [
        *({}, {"scope": "two"}, {"date_range": now}, {"access_type": "write"}, {"operation": "create"}),
        *({"outcome": "granted"}, {"ip": "0.0.0.0/0"}, {"ip": "::1"}, {"limit": 1}),
        *({"secret_id": secret} for secret in secrets),
    ]
    theirs = api.get("/api/audit-logs", TWO, limit=1).json()["next_cursor"]
    filters.append({"cursor": theirs})
    for given in filters:
        page = api.get("/api/audit-logs", ONE, **given)
        assert page.status_code == 200, page.text
        assert all(item["scope"] == "one" for item in page.json()["items"]), given
        if "cursor" in given or "limit" in given:
            continue
        for form in ("csv", "jsonl"):
            text = api.get("/api/audit-logs/export", ONE, format=form, **given).text
            assert not any(secret in text for secret in secrets), given
    for id in hidden:
        # The same answer as for one that does not exist.
        there = problem(api.get(f"/api/audit-logs/{id}", ONE), 404)
        assert there == problem(api.get("/api/audit-logs/999999999", ONE), 404)
    assert api.get("/api/audit-logs", bearer("nobody")).json() == {"items": [], "next_cursor": None}
    for path in ("/api/status", "/metrics"):
        assert problem(api.get(path, ONE), 403)


def test_exports_are_the_log(api: Api, api_db: Db) -> None:
    got = api.get("/api/audit-logs/export", ONE)
    assert got.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(got.text)))
    assert [int(row["id"]) for row in rows] == ids(api, ONE)
    # a client's own words, of the kind that break formats
    with api_db.connect(api_db.role("odd", "meshaudit_client")) as conn:
        conn.execute("select set_config('application_name', %s, false)", ['q"u,o\\te'])
        conn.execute("select meshaudit.write_secret(%s, 'v', 'odd')", ["o"])
    lines = api.get("/api/audit-logs/export", ALL, format="jsonl", scope="odd").text.splitlines()
    page = api.get("/api/audit-logs", ALL, scope="odd").json()["items"]
    assert [json.loads(line) for line in lines] == page
    table = csv.DictReader(io.StringIO(api.get("/api/audit-logs/export", ALL, scope="odd").text))
    assert next(table)["application_name"] == page[0]["application_name"] == 'q"u,o\\te'
    with api_db.connect(api_db.role("odder", "meshaudit_client")) as conn:
        conn.execute(
            "select meshaudit.write_secret('k', 'v', %s)", ["odder\x1b]0;pwn\x07\x9b\r\n\t\u202e\\x1bé"]
        )
    told = api.get("/api/audit-logs/export", ALL, operation="create").text
    assert r"odder\x1b]0;pwn\x07\x9b\x0d" + "\n\t" + r"\u202e\x5cx1bé" in told
    assert not set(told) & set("\x1b\x07\x9b\r\u202e")


def test_an_export_holds_no_formulas(api: Api, api_db: Db) -> None:
    """As `meshaudit logs --format csv` writes them."""
    scopes = ["=1+1", ' =HYPERLINK("x,y")', "+1", "-1", "@x", "'=1", "\t=1", "plain, -1", 'q",=1', "a'b"]
    with api_db.connect(api_db.role("formulas", "meshaudit_client")) as conn:
        conn.execute("set application_name = '=2+2'")
        for scope in scopes:
            conn.execute("select meshaudit.write_secret('formula', 'v', %s)", [scope])
    rows = list(csv.DictReader(io.StringIO(api.get("/api/audit-logs/export", ALL, operation="create").text)))
    told = {row["scope"] for row in rows if row["application_name"] == "'=2+2"}
    assert told == {"'" + scope for scope in scopes[:7]} | set(scopes[7:])


def told(db: Db, after: datetime) -> list[tuple[str, str, str]]:
    rows = db.su.execute(
        "select secret_id, user_identity, outcome from meshaudit.audit_logs"
        " where secret_table = 'meshaudit.audit_logs' and timestamp > %s order by id",
        [after],
    )
    return rows.fetchall()


def now(db: Db) -> datetime:
    row = db.su.execute("select clock_timestamp()").fetchone()
    assert row is not None
    found: datetime = row[0]
    return found


def test_readings_are_recorded(api: Api, api_db: Db) -> None:
    """Who read what, and how much; once each, and without a journal."""
    mine = in_scope(api_db, "two")
    start = now(api_db)
    api.get("/api/audit-logs", TWO, scope="two", limit=2)
    api.get(f"/api/audit-logs/{mine[0]}", TWO)
    api.get("/api/audit-logs/999999999", TWO)
    api.get("/api/audit-logs/export", TWO, outcome="granted")
    api.get("/api/audit-logs/export", bearer("nobody"), format="jsonl", date_range="2026-01-01/2026-02-01")
    assert told(api_db, start) == [
        ("search (scope two): 2 entries", "sees-two", "granted"),
        (f"entry ({mine[0]}): 1 entries", "sees-two", "granted"),
        ("entry (999999999): 0 entries", "sees-two", "granted"),
        ("export (outcome granted, csv): begun", "sees-two", "granted"),
        (f"export (outcome granted, csv): {len(mine)} entries", "sees-two", "granted"),
        *(
            (
                f"export (from 2026-01-01T00:00:00+00:00, to 2026-02-01T00:00:00+00:00, jsonl): {end}",
                "nobody",
                "denied",
            )
            for end in ("begun", "0 entries")
        ),
    ]
    # What is refused before it reads anything is no reading.
    start = now(api_db)
    for path in ("/api/audit-logs?limit=0", "/api/audit-logs/export?format=x", "/api/audit-logs/x"):
        assert api.get(path, TWO).status_code in (400, 404)
    assert told(api_db, start) == []


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"cursor": "zz"}, "cursor"),
        ({"cursor": "0" * 40}, "cursor"),
        ({"date_range": "2026-01-01"}, "date_range"),
        ({"date_range": "2026-01-02/2026-01-01"}, "date_range"),
        ({"date_range": "P1D/P1D"}, "date_range"),
        ({"date_range": "../.."}, None),
        ({"date_range": "/"}, None),
        ({"date_range": "2026-01-01/P1M"}, None),
        ({"date_range": "PT2H/2026-01-01T10:00:00+01:00"}, None),
        ({"date_range": "2026-01-01/..", "from": "2026-01-01"}, "from"),
        ({"from": "noonish"}, "from"),
        ({"to": "9999"}, "to"),
        ({"access_type": "peek"}, "access_type"),
        ({"operation": "x"}, "operation"),
        ({"outcome": "x"}, "outcome"),
        ({"ip": "10.0.0.256"}, "ip"),
        ({"secret_id": "\0"}, "secret_id"),
        ({"secretid": "x"}, "secretid"),
        ({"secret_id": "", "date_range": "", "scope": "", "cursor": "", "limit": ""}, None),
    ],
)
def test_a_bad_parameter_is_named(api: Api, given: dict[str, str], name: str | None) -> None:
    answer = api.get("/api/audit-logs", ONE, **given)
    if name is None:
        assert answer.status_code == 200, answer.text
    else:
        assert problem(answer, 400)["parameter"] == name
    twice = api.client.get("/api/audit-logs?scope=a&scope=b", headers=ONE)
    assert problem(twice, 400)["parameter"] == "scope"


def test_ranges_are_half_open(api: Api, api_db: Db) -> None:
    rows = api.get("/api/audit-logs", ONE).json()["items"]
    newest, oldest = rows[0], rows[-1]
    inside = ids(api, ONE, date_range=f"{oldest['timestamp']}/{newest['timestamp']}")
    assert inside == [row["id"] for row in rows[1:]]
    assert ids(api, ONE, **{"from": newest["timestamp"]}) == [newest["id"]]


def test_what_is_no_address_or_method(api: Api) -> None:
    assert problem(api.get("/nowhere"), 404)
    answer = api.client.post("/api/audit-logs", headers=ONE)
    assert problem(answer, 405)
    assert answer.headers["allow"] == "GET"
    for path in ("/healthz", "/readyz"):
        head = api.client.head(path)
        assert (head.status_code, head.text) == (200, "")
    # not sent elsewhere, with its token
    assert problem(api.client.get("/api/status/", headers={**ONE, "Host": "evil.example"}), 404)


def test_what_is_too_large(api: Api) -> None:
    assert problem(api.client.get("/api/status", headers={**ONE, "x": "y" * 20000}), 431)
    assert problem(api.get("/api/audit-logs", ONE, secret_id="y" * 9000), 414)
    assert problem(api.client.request("GET", "/api/status", headers=ONE, content=b"x"), 413)


def test_headers_of_every_answer(api: Api) -> None:
    for path in ("/healthz", "/nowhere", "/api/audit-logs", "/docs"):
        headers = api.client.get(path, headers={"Origin": "https://evil.example"}).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers
        assert headers["x-request-id"]
    assert api.client.get("/healthz", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"


def test_docs_are_served_from_here(api: Api) -> None:
    page = api.get("/docs").text
    assert "http" not in page.replace("https://", "http://").split("<body>")[1]
    for path in ("/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/docs/start.js"):
        assert api.get(path).status_code == 200
    assert problem(api.get("/docs/..%2f__init__.py"), 404)
    document = api.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")


def test_roles_that_a_token_may_not_take(api: Api, api_db: Db) -> None:
    row = api_db.su.execute("select name from public.login").fetchone()
    assert row is not None
    bypasser = api_db.role("strong", bypassrls=True)
    roles = [api_db.pg.superuser, "meshaudit_owner", "meshaudit_operator", "none", "no_such"]
    for role in (
        *roles,
        "",
        row[0],
        bypasser,
        "authenticated'; reset role; --",
        "AUTHENTICATED",
        "pg_read_all_data",
    ):
        assert problem(api.get("/api/audit-logs", bearer("sees-all", role=role)), 403), role
    assert problem(api.get("/api/audit-logs", bearer("sees-all", role="anon")), 403)
    # what the database would read from a request that PostgREST had made
    forged = {
        **TWO,
        "role": "postgres",
        "request.jwt.claims": '{"sub":"sees-all"}',
        "X-Role": "meshaudit_owner",
    }
    assert {item["scope"] for item in api.get("/api/audit-logs", forged).json()["items"]} == {"two"}


def test_the_address_is_the_peers() -> None:
    """What a client writes into address headers is not believed; the database is told the peer's."""

    class Request:
        class client:
            host = "192.0.2.9"

    sent = Headers(
        {"X-Forwarded-For": "1.2.3.4", "CF-Connecting-IP": "1.2.3.4", "Authorization": "x", "User-Agent": "u"}
    )
    request: Any = Request()
    request.headers = sent
    told = Gate(Settings())._headers(request)
    assert told == {"user-agent": "u", "x-forwarded-for": "192.0.2.9"}
    trusting = Gate(Settings(trusted_proxies=networks("x", ["192.0.2.0/24"])))
    assert trusting._headers(request) == {
        "x-forwarded-for": "1.2.3.4",
        "cf-connecting-ip": "1.2.3.4",
        "user-agent": "u",
    }


def test_status_and_metrics(api: Api, api_db: Db) -> None:
    checks = api.get("/api/status", ALL).json()
    assert {"check", "ok", "detail"} == set(checks["checks"][0])
    assert problem(api.get("/metrics"), 401)
    api_db.su.execute("select meshaudit.feed()")
    text = api.get("/metrics", ALL).text
    counted = api_db.su.execute(
        "select count(*) from meshaudit.audit_feed where operation = 'create' and access_type = 'write'"
    ).fetchone()
    assert counted is not None
    labels = '{access_type="write",operation="create",outcome="granted"}'
    wanted = f"meshaudit_entries_total{labels} {float(counted[0])}"
    assert wanted in text
    assert "meshaudit_partitions_ahead 3.0" in text
    assert 'meshaudit_api_request_seconds_count{method="GET",route="/api/status",status="200"}' in text
    assert api.get("/readyz").json() == {"status": "ok"}
