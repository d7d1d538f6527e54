"""The HTTP API: how requests, exports and the server itself end; and whose login it serves as."""

import time
from collections.abc import Iterator

import httpx
import pytest

from benchmarks.api_export import export, fill
from tests.api_support import audited, bearer, problem, serving
from tests.flavours import Templates
from tests.support import Db, wait_until
from tests.test_api import ids, in_scope, now, told

ALL, ONE = bearer("sees-all"), bearer("sees-one")


@pytest.fixture(scope="module")
def api_db(template: Templates) -> Iterator[Db]:
    with audited(template) as db:
        yield db


def test_a_search_that_takes_too_long(api_db: Db) -> None:
    row = api_db.su.execute("select name from public.login").fetchone()
    assert row is not None
    with serving(api_db, "--statement-timeout", "0.2", "--pool-size", "2", login=row[0]) as api:
        with api_db.su.transaction():
            api_db.su.execute("lock table meshaudit_private.auditors in access exclusive mode")
            answer = api.get("/api/audit-logs", ONE)
        assert problem(answer, 503)["type"].endswith(":timeout")
        assert int(answer.headers["retry-after"]) > 0
        # on a busy machine 0.2 s can be too short for any search
        wait_until(lambda: api.get("/api/audit-logs", ONE).status_code == 200)


def test_a_login_that_is_no_gateway(api_db: Db) -> None:
    login = api_db.role("plain", inherit=False)
    api_db.pg.run(f"grant authenticated to {login}")
    with serving(api_db, login=login) as api:
        assert problem(api.get("/api/audit-logs", ALL), 503)["type"].endswith(":not-a-gateway")


def test_a_login_that_is_a_gateway_no_more(api_db: Db) -> None:
    row = api_db.su.execute("select name from public.login").fetchone()
    assert row is not None
    with serving(api_db, login=row[0]) as api:
        assert api.get("/api/audit-logs", ALL).status_code == 200
        before = api_db.su.execute("select meshaudit.get_setting('gateway_roles')").fetchone()
        assert before is not None
        setting = "select meshaudit.set_setting('gateway_roles', %s)"
        api_db.su.execute(setting, ["somebody_else"])
        try:
            assert problem(api.get("/api/audit-logs", ALL), 503)["type"].endswith(":not-a-gateway")
        finally:
            api_db.su.execute(setting, [before[0]])


def test_without_authentication_on_loopback_it_is_the_login(api_db: Db) -> None:
    login = api_db.role("reader")
    api_db.su.execute("select meshaudit.grant_auditor(%s, 'two')", [login])
    with serving(api_db, login=login, env={"MESHAUDIT_JWT_SECRET": ""}) as api:
        assert ids(api, {}) == in_scope(api_db, "two")
        assert problem(api.client.get("/api/audit-logs", headers={"Host": "evil.example"}), 421)


def test_it_stops_at_sigterm(api_db: Db) -> None:
    row = api_db.su.execute("select name from public.login").fetchone()
    assert row is not None
    with serving(api_db, login=row[0]) as api:
        with api.client.stream("GET", "/api/audit-logs/stream", headers=ONE) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("retry:")
            api.process.terminate()
            began = time.monotonic()
            assert any("stopping" in line for line in lines)
        code, said = api.stop()
        assert time.monotonic() - began < 5
        assert "Traceback" not in said
        assert code == 0


def test_an_export_that_the_end_of_the_server_breaks_off(api_db: Db) -> None:
    row = api_db.su.execute("select name from public.login").fetchone()
    assert row is not None
    fill(api_db.su, 60_000)
    with serving(api_db, login=row[0]) as api:
        with api.client.stream("GET", "/api/audit-logs/export", headers=ALL, timeout=30) as answer:
            chunks = answer.iter_raw(1000)
            next(chunks)
            api.process.terminate()
            code = api.process.wait(30)  # what nobody takes ends after the server's grace
            with pytest.raises(httpx.HTTPError):
                list(chunks)
        _, said = api.stop()
    assert code == 0
    assert "Traceback" not in said
    assert "broken off, the server stops" in said
    last = (
        "select secret_id from meshaudit.audit_logs where secret_id like 'export (%' order by id desc limit 1"
    )
    assert str(api_db.su.execute(last.encode()).fetchall()[0][0]).endswith("broken off")


def test_an_export_takes_no_memory(api_db: Db) -> None:
    """`make bench-api` does so with a million."""
    row = api_db.su.execute("select name from public.login").fetchone()
    assert row is not None
    fill(api_db.su, 60_000)
    with serving(api_db, login=row[0]) as api:
        api.get("/api/audit-logs", ALL)
        before = api.memory()
        lines, size, _ = export(api, ALL, "csv")
        assert lines > 60_000
        assert size > 20 << 20
        assert api.memory() - before < 8 << 20
        # Who goes away half-way leaves nothing behind but the entries: more than may be open at a time.
        start = now(api_db)
        for _ in range(12):
            with api.client.stream("GET", "/api/audit-logs/export", headers=ALL) as answer:
                if answer.status_code == 200:
                    next(answer.iter_raw())
        wait_until(lambda: api.get("/api/audit-logs/export", ONE).status_code == 200, what="a free place")
        wait_until(
            lambda: api.get("/api/audit-logs/export", ALL, scope="odd").status_code == 200,
            what="a free place",
        )
        # (The filling has left the trigger off that says who calls.)
        said = [what for what, _, _ in told(api_db, start) if what.startswith("export (csv): ")]
        begun = said.count("export (csv): begun")
        broken = [what for what in said if what.endswith(" entries, broken off")]
        assert broken
        assert all(int(what.split()[2]) < lines for what in broken)
        assert len(said) == 2 * begun
