"""The README is true: its session is the demo's, its snippets run, its limits are real."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg
from typer.main import get_command

from meshaudit import schema
from meshaudit.cli import app
from meshaudit.server import Server
from tests.api_support import bearer, problem, serving
from tests.cli_support import ok, run
from tests.servers import ROOT
from tests.support import Db

README = (ROOT / "README.md").read_text("utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.S | re.M)


def _normal(line: str) -> str:
    """A line without what differs from run to run."""
    line = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", line)
    line = re.sub(r"\d\d:\d\d:\d\d\.\d+", "TIME", line)
    line = re.sub(r"lane \d+, seq \d+", "lane L, seq S", line)
    return re.sub(r"─+", "─", re.sub(r" +", " ", line)).rstrip()


def test_the_session_is_the_demos() -> None:
    told = [_normal(line) for line in ok("demo").splitlines()]
    (session,) = _blocks("text")
    place = 0
    for part in re.split(r"^ +…$", session, flags=re.M):
        lines = [_normal(line) for line in part.strip("\n").splitlines()]
        found = [i for i in range(place, len(told)) if told[i : i + len(lines)] == lines]
        assert found, f"not in the output of the demo, or not in this order:\n{part}"
        place = found[0] + len(lines)
    assert place == len(told), "the README leaves out how the demo ends"


def test_sql_runs_as_shown(db: Db) -> None:
    blocks = _blocks("sql")
    assert len(blocks) == 6
    names = {"billing": db.role("billing", "meshaudit_client"), "alice": db.role("alice")}
    text = "".join(blocks)
    created = "create role billing login in role meshaudit_client;\n"
    assert created in text
    # Roles belong to the whole server, so the tests have names of their own.
    text = re.sub(r"\b(billing|alice)\b", lambda found: names[found[0]], text.replace(created, ""))
    answers: list[list[Any]] = []
    for statement in filter(str.strip, text.split(";")):
        who = names["billing"] if "_secret" in statement.split("(")[0] else None
        with db.connect(who) as conn:
            cursor = conn.execute(statement.encode())
            answers += [cursor.fetchall()] if cursor.description else []
    _, read, _, _, revealed, _, searched, verified, checkpoint, armed = answers
    assert read == [(b"\xc0\xff\xee",)]
    assert revealed == [(b"\xc0\xff\xee",)]
    assert [row[3] for row in searched] == ["read", "read"]
    assert verified == []
    assert checkpoint[0][0]["entries"] == 7  # the search is one
    assert armed == [("armed",)]
    with db.connect(names["alice"]) as conn:
        assert conn.execute("select count(*) from meshaudit.audit_logs").fetchone() == (8,)
    with db.connect() as conn:
        conn.execute("select meshaudit.disarm_journal()")


def test_commands_run_as_shown(db: Db, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for block in _blocks("sh") for line in block.splitlines() if line.startswith("meshaudit")]
    assert len(lines) == 4
    for line in lines:
        ok(*shlex.split(line)[1:], dsn=db.dsn())


def test_http_on_a_plain_server(db: Db) -> None:
    """The recipe, with role names of its own; whoever the token names then reads the log."""
    (recipe,) = re.findall(r"^psql app <<'SQL'.*?\n(.*?)^SQL$", README, re.S | re.M)
    names = {"authenticator": db.role("authenticator", inherit=False), "webuser": db.role("webuser")}
    created = re.findall(r"^create role.*\n", recipe, re.M)
    assert [line.split()[2].rstrip(";") for line in created] == list(names)
    for line in created:
        recipe = recipe.replace(line, "")
    recipe = re.sub(r"\b(authenticator|webuser)\b", lambda found: names[found[0]], recipe)
    (api_roles,) = re.findall(r"^.*'api_roles'.*\n", recipe, re.M)
    db.su.execute(recipe.replace(api_roles, "").encode())
    with serving(db, login=names["authenticator"]) as api:
        refused = api.get("/api/audit-logs", bearer("user-1", role=names["webuser"]))
        assert "api_roles" in problem(refused, 403)["hint"]
        db.su.execute(recipe[recipe.index(api_roles) :].encode())
        found = api.get("/api/audit-logs", bearer("user-1", role=names["webuser"]))
        assert "user-1" in [item["secret_id"] for item in found.json()["items"]]
        nobody = api.get("/api/audit-logs", bearer("user-2", role=names["webuser"]))
        assert nobody.json()["items"] == []


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in set(re.findall(r"\bmake (\w+)\b", README)) - {"sure"}:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_every_command_and_option_is_documented() -> None:
    rows = dict(re.findall(r"^\| `meshaudit ([\w-]+)[^|]*\|(.*)\|$", README, re.M))
    whole = {
        name: f"{line}"
        for line in README.splitlines()
        for name in re.findall(r"^\| `meshaudit ([\w-]+)", line)
    }
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert set(rows) == set(commands)
    for name, command in commands.items():
        options = {
            option for parameter in command.params for option in parameter.opts if option.startswith("--")
        }
        # These are told once for all commands.
        missing = {o for o in options - {"--dsn", "--json", "--help"} if f"{o}" not in whole[name]}
        assert not missing, (name, missing)
    for name in re.findall(r"`meshaudit ([a-z-]+)", README):
        assert name in commands


def test_every_sql_function_is_documented(db: Db) -> None:
    documented = set(re.findall(r"meshaudit\.(\w+)\(", README))
    rows = db.su.execute("select proname from pg_proc where pronamespace = 'meshaudit'::regnamespace")
    existing = {name for (name,) in rows}
    assert documented == existing


def test_what_it_refers_to_exists() -> None:
    for path in [*re.findall(r"\]\(([^)#]+)\)", README), *re.findall(r"`(tests/[\w/]+\.py)`", README)]:
        assert (ROOT / path).exists(), path


# What the README says is guaranteed to a service, and what is not proved.


@pytest.fixture
def service(db: Db) -> psycopg.Connection[Any]:
    """A service with one secret, 'k'."""
    conn = db.connect(db.role("service", "meshaudit_client"))
    conn.execute("select meshaudit.write_secret('k', 'v')")
    return conn


def _entries(db: Db) -> list[tuple[Any, ...]]:
    return db.su.execute("select db_user, operation from meshaudit.audit_logs order by id").fetchall()


def test_a_committed_access_has_an_entry(db: Db, service: psycopg.Connection[Any]) -> None:
    found = service.execute("select meshaudit.read_secret_by_key('k')").fetchone()
    assert found == (b"v",)
    user = service.info.user
    assert _entries(db) == [(user, "create"), (user, "read")]


def test_limit_a_rollback_leaves_no_trace(db: Db, service: psycopg.Connection[Any]) -> None:
    before = _entries(db)
    with service.transaction(force_rollback=True):
        assert service.execute("select meshaudit.read_secret_by_key('k')").fetchone() == (b"v",)
    assert _entries(db) == before
    with pytest.raises(psycopg.Error, match="no store can record"):
        service.execute("begin read only; select meshaudit.read_secret_by_key('k')")
    assert "a rolled-back access leaves no trace" in ok("status", dsn=db.dsn())


def test_limit_refusals_leave_no_entry(db: Db, service: psycopg.Connection[Any]) -> None:
    before = _entries(db)
    with pytest.raises(psycopg.Error, match="no such secret"):
        service.execute("select meshaudit.read_secret_by_key('missing')")
    with pytest.raises(pg.InsufficientPrivilege):
        service.execute("select * from meshaudit.audit_logs")
    assert _entries(db) == before


def test_who_reads_the_log_leaves_an_entry(db: Db, service: psycopg.Connection[Any]) -> None:
    before = _entries(db)
    auditor = db.role("auditor")
    db.su.execute("select meshaudit.grant_auditor(%s)", [auditor])
    ok("logs", dsn=db.dsn(auditor))
    assert _entries(db)[len(before) + 1 :] == [(auditor, "read")]


def test_limit_without_a_journal_read_only_reads_the_log_unseen(
    db: Db, service: psycopg.Connection[Any]
) -> None:
    auditor = db.role("auditor")
    db.su.execute("select meshaudit.grant_auditor(%s)", [auditor])
    before = _entries(db)
    conn = db.connect(auditor)
    conn.execute("set default_transaction_read_only = on")
    assert conn.execute("select count(*) > 0 from meshaudit.audit_logs").fetchone() == (True,)
    db.su.execute("select * from meshaudit.audit_logs")
    assert _entries(db) == before


def test_limit_a_scope_is_no_wall(db: Db) -> None:
    one, two = (db.connect(db.role(name, "meshaudit_client")) for name in ("one", "two"))
    one.execute("select meshaudit.write_secret('k', 'v', 'of one')")
    assert two.execute("select meshaudit.read_secret_by_key('k', 'of one')").fetchone() == (b"v",)


def test_limit_a_superuser_reads_unseen_and_adds_in_any_name(
    db: Db, service: psycopg.Connection[Any]
) -> None:
    before = _entries(db)
    assert db.su.execute("select value from meshaudit_private.secrets").fetchone() == (b"v",)
    assert _entries(db) == before
    assert db.pg.superuser in ok("status", dsn=db.dsn())
    with db.connect(db.pg.superuser) as conn:
        conn.execute(f'set session authorization "{service.info.user}"'.encode())
        conn.execute("select meshaudit.read_secret_by_key('k')")
    assert _entries(db) == [*before, (service.info.user, "read")]
    assert run("verify", dsn=db.dsn()).returncode == 0


# What the owner of the database would run: each entry changed and hashed anew, and the lanes' heads to match.
_REWRITE = """
alter table meshaudit_private.ledger disable trigger append_only;
do $$
declare
  e record;
  v_prev bytea;
  v_hash bytea;
begin
  for e in select * from meshaudit_private.ledger order by lane, seq loop
    v_prev := case e.seq when 1 then e.prev_hash else v_hash end;
    v_hash := meshaudit_private.entry_hash(v_prev, e.lane, e.seq, meshaudit_private.entry_tail(
      e.id, e.secret_id, e.access_type, e."timestamp", 'mallory', e.ip_address, e.operation, e.outcome,
      e.secret_table, e.scope, e.identity_source, e.claimed_identity, e.db_user, e.db_role,
      e.application_name, e.user_agent, e.request_id, e.access_id));
    update meshaudit_private.ledger set user_identity = 'mallory', prev_hash = v_prev, hash = v_hash
      where lane = e.lane and seq = e.seq;
    update meshaudit_private.lane_heads set hash = v_hash where lane = e.lane;
  end loop;
end
$$;
alter table meshaudit_private.ledger enable always trigger append_only;
"""


def test_limit_only_a_checkpoint_shows_a_whole_rewrite(
    db: Db, service: psycopg.Connection[Any], tmp_path: Path
) -> None:
    kept = tmp_path / "checkpoint.json"
    service.execute("select meshaudit.read_secret_by_key('k')")
    ok("checkpoint", "--output", str(kept), dsn=db.dsn())
    db.su.execute(_REWRITE)
    done = run("verify", dsn=db.dsn())
    assert done.returncode == 0, done.stdout
    done = run("verify", "--checkpoint", str(kept), dsn=db.dsn())
    assert done.returncode == 1
    assert ": edited" in done.stdout


def test_no_value_is_in_the_log_but_clients_words_are(db: Db, service: psycopg.Connection[Any]) -> None:
    service.execute("set application_name = 'anything'")
    service.execute("select meshaudit.write_secret('k', 'find-me')")
    text = ok("logs", "--format", "json", dsn=db.dsn())
    assert "anything" in text
    assert "find-me" not in text
    assert b"find-me".hex() not in text


@pytest.fixture
def lazy() -> Iterator[Server]:
    """A server that takes its time before it writes WAL of its own accord."""
    with Server.temporary(settings={"wal_writer_delay": "10s", "fsync": "off"}) as server:
        yield server


def test_limit_a_crash_takes_entries_of_asynchronous_commits(lazy: Server) -> None:
    with psycopg.connect(lazy.dsn(), autocommit=True) as conn:
        schema.install(conn)
        conn.execute("select meshaudit.write_secret('k', 'v')")
        conn.execute("set synchronous_commit = off")
        assert conn.execute("select meshaudit.read_secret_by_key('k')").fetchone() == (b"v",)
        lazy.kill()
    lazy.start()
    with psycopg.connect(lazy.dsn()) as conn:
        assert conn.execute("select operation from meshaudit.audit_logs").fetchall() == [("create",)]
