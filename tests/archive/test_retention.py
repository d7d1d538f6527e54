"""Policies, expiry and `meshaudit retain`: what is given up was due, and the log said so first."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from meshaudit import archive_verify, expired
from meshaudit.archive import expire, job
from meshaudit.archive_place import Place
from tests.archive import s3
from tests.archive.history import guards, load, partitions
from tests.cli_support import fails, ok, ok_json, run
from tests.support import Db


@pytest.fixture
def past(db: Db) -> Db:
    """A ledger with four months behind it."""
    load(db.su, months=4, rows=400)
    return db


def policy(db: Db, scope: str, database: str, archive: str | None = None, *, settled: bool = True) -> None:
    """Set a policy; settled: as if that, and what it ended, had been a week and a day ago."""
    db.su.execute("select meshaudit.set_retention(%s, %s, %s)", [scope, database, archive])
    if settled:
        a_week_later(db)


def a_week_later(db: Db) -> None:
    db.su.execute(
        "update meshaudit_private.retention set set_at = set_at - interval '8 days',"
        " ended_at = ended_at - interval '8 days'"
    )


def plan(db: Db) -> dict[str, tuple[str, str | None]]:
    rows = db.su.execute("select partition, action, detail from meshaudit.retention_plan()").fetchall()
    return {name: (action, detail) for name, action, detail in rows}


def actions(db: Db) -> list[str]:
    """Of the four months, oldest first."""
    return [action for action, _ in plan(db).values()][:4]


def archive(db: Db, place: Path | str, *names: str) -> None:
    """Archive these partitions, or all that are ready."""
    found = [
        p for p in job.candidates(db.su, datetime(2999, 1, 1, tzinfo=UTC)) if p.state in ("ready", "restored")
    ]
    wanted = [p for p in found if not names or p.name in names]
    list(job.archive(db.su, db.dsn(), place, wanted, lambda *_: None))


def refused(conn: psycopg.Connection[Any], state: str, query: str, *params: Any) -> str:
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(query.encode(), params)
    assert caught.value.sqlstate == state, caught.value
    return str(caught.value)


def entries(db: Db, table: str) -> list[Any]:
    return db.su.execute(
        "select operation, secret_id, scope from meshaudit.audit_logs where secret_table = %s order by id",
        [table],
    ).fetchall()


def test_a_policy_is_an_entry(any_db: Db) -> None:
    admin = any_db.connect()
    admin.execute("set intervalstyle = 'iso_8601'")
    admin.execute("select meshaudit.set_retention('*', '90 days')")
    admin.execute("select meshaudit.set_retention('Zoë''s', '1 year', keep_in_archive => '7 years')")
    admin.execute("select meshaudit.set_retention('*', '30 days', '1 year')")
    assert admin.execute("select meshaudit.remove_retention('*')").fetchone() == (True,)
    assert admin.execute("select meshaudit.remove_retention('*')").fetchone() == (False,)
    assert entries(any_db, "meshaudit.retention") == [
        ("create", "*: 90 days in the database, for ever in the archive", "*"),
        ("create", "Zoë's: 1 year in the database, 7 years in the archive", "Zoë's"),
        ("update", "*: 30 days in the database, 1 year in the archive", "*"),
        ("delete", "*", "*"),
    ]
    set_it = "select meshaudit.set_retention(%s, %s::interval, %s::interval)"
    for bad in (
        (None, "1 day", None),
        ("x" * 256, "1 day", None),
        ("x", None, None),
        ("x", "23 hours", None),
        ("x", "1 month -29 days", None),
        ("x", "-1 day", None),
        ("x", "1001 years", None),
        ("x", "1 day", "0 days"),
    ):
        assert "policy" in refused(admin, "MA005", set_it, *bad)
    for value in ("1 month -29 days", "200000 years"):
        refused(admin, "MA005", "select meshaudit.set_setting('keep_in_database', %s)", value)
    # who retires does not say when, nor does who reads
    for group in ("meshaudit_operator", "meshaudit_auditor", "meshaudit_client"):
        conn = any_db.connect(any_db.role("role", group))
        refused(conn, "42501", set_it, "*", "1 day", None)
        refused(conn, "42501", "select meshaudit.remove_retention('*')")
    auditor = any_db.role("auditor")
    admin.execute("select meshaudit.grant_auditor(%s, 'Zoë''s')".encode(), [auditor])
    conn = any_db.connect(auditor)
    seen = conn.execute("select scope, keep_in_archive::text from meshaudit.retention_policies()").fetchall()
    assert seen == [("Zoë's", "7 years")]
    refused(conn, "MA001", "select * from meshaudit.retention_plan()")
    refused(conn, "MA001", "select * from meshaudit.expiries()")


def test_the_longest_scope_counts(past: Db) -> None:
    assert set(actions(past)) == {"keep"}, "without a policy nothing is archived by itself"
    policy(past, "project7", "1 day")
    assert {detail for _, detail in plan(past).values()} > {"no policy for scope *"}
    policy(past, "*", "1 day")
    assert actions(past)[:3] == ["archive"] * 3
    policy(past, "project7", "50 years")
    kept = [detail or "" for action, detail in plan(past).values() if action == "keep"]
    assert kept[0].startswith("scope project7 is kept in the database until 20")
    with_it = {
        name
        for name in partitions(past.su, "ready", "kept")
        if past.su.execute(
            f"select from meshaudit_private.{name} where scope = 'project7' limit 1".encode()
        ).rowcount
    }
    assert with_it
    assert {name for name, (action, _) in plan(past).items() if action == "archive"}.isdisjoint(with_it)
    policy(past, "*", "50 years")
    policy(past, "project7", "1 day")
    assert set(actions(past)) == {"keep"}, "there are entries of other scopes"
    # a scope that is nowhere holds nothing
    policy(past, "*", "1 day")
    policy(past, "nowhere", "50 years")
    assert actions(past)[:3] == ["archive"] * 3


def test_sql_itself_refuses(past: Db, tmp_path: Path) -> None:
    """Not only the program: with the right manifest, an operator is refused what a policy keeps."""
    texts: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "_retire", lambda *given: texts.append(given[2]))
        archive(past, tmp_path, partitions(past.su, "ready")[0])
    name = json.loads(texts[0])["partition"]
    operator = past.connect(past.role("op", "meshaudit_operator"))
    policy(past, "*", "50 years", settled=False)
    assert "scope * is kept" in refused(
        operator, "MA005", "select meshaudit.retire_partition(%s, %s)", name, texts[0]
    )
    policy(past, "*", "1 day", settled=False)
    # shortened: for a week it counts as it was
    assert "scope * is kept" in refused(
        operator, "MA005", "select meshaudit.retire_partition(%s, %s)", name, texts[0]
    )
    a_week_later(past)
    operator.execute("select meshaudit.retire_partition(%s, %s)", [name, texts[0]])
    scopes = past.su.execute("select scopes from meshaudit_private.retirements").fetchone()
    assert scopes is not None
    assert len(scopes[0]) > 20


def test_shortening_takes_a_week(past: Db) -> None:
    def due(column: str = "database_until") -> dict[str, str]:
        rows = past.su.execute(
            f"select scope, ({column})::date::text from meshaudit_private.retention_of('2030-01-01Z')".encode()
        )
        return dict(rows.fetchall())

    past.su.execute("set timezone = 'UTC'")
    assert due() == {"*": None}
    policy(past, "*", "10 days", "20 days", settled=False)
    assert due() == {"*": "2030-01-11"}
    assert due("archive_until") == {"*": "infinity"}, "there it was for ever until now"
    a_week_later(past)
    assert due("archive_until") == {"*": "2030-01-31"}
    policy(past, "*", "12 days", "20 days", settled=False)
    assert due() == {"*": "2030-01-13"}, "longer at once"
    policy(past, "a", "1 day", "1 day", settled=False)
    assert due()["a"] == "2030-01-13", "the default's goes on"
    a_week_later(past)
    assert due()["a"] == "2030-01-02"
    assert due("archive_until")["a"] == "2030-01-03"
    past.su.execute("select meshaudit.remove_retention('*')")
    assert due()["*"] == "2030-01-13"
    assert due("archive_until")["*"] == "infinity"
    a_week_later(past)
    assert due() == {"*": None, "a": "2030-01-02"}
    past.su.execute("select meshaudit.remove_retention('a')")
    policy(past, "*", "5 days", "1 day", settled=False)
    assert due()["a"] == "2030-01-06"
    assert due("archive_until")["a"] == "infinity"


def expired_two(past: Db, place: Path | str) -> list[str]:
    """All four archived; the first two have expired."""
    policy(past, "*", "1 day", "1 day")
    archive(past, place)
    names = [name for name, (action, _) in plan(past).items() if action == "expire"]
    for name in names[:2]:
        expire.expire(past.su, place, name)
    return names


def test_retain(past: Db, tmp_path: Path) -> None:
    place = tmp_path / "a"
    policy(past, "*", "1 day", "1 day")
    before = past.su.execute("select count(*) from meshaudit.audit_logs").fetchone()
    dry = ok_json("retain", "--to", str(place), "--dry-run", dsn=past.dsn())
    assert [row["action"] for row in dry][:3] == ["archive"] * 3
    assert not place.exists()
    assert past.su.execute("select count(*) from meshaudit.audit_logs").fetchone() == before
    done = {row["partition"]: row["action"] for row in ok_json("retain", "--to", str(place), dsn=past.dsn())}
    over = [name for name, action in done.items() if action == "expired"]
    assert over == [row["partition"] for row in dry if row["action"] == "archive"][: len(over)]
    assert len(over) >= 2
    there = {path.name for path in place.iterdir()}
    retired = partitions(past.su, "retired")
    assert there == {f"{n}.manifest.json" for n in retired} | {f"{n}.expiry.json" for n in over} | {
        f"{n}.parquet" for n in retired if n not in over
    }
    assert len([n for n in retired if n not in over]) >= 1, "the newest stays"
    both = ok_json("verify", "--archive", str(place), dsn=past.dsn())
    assert both["intact"], both
    assert both["archived"] + both["expired"] == both["retired"]
    assert past.su.execute("select * from meshaudit.verify()").fetchall() == []
    log = entries(past, "meshaudit.expiry")
    assert [secret.split(" ")[0] for _, secret, _ in log] == over
    # killed between the log and the file: the next run does the rest
    (place / f"{over[0]}.expiry.json").unlink()
    (place / f"{over[0]}.parquet").write_bytes(b"x")
    again = run("retain", "--to", str(place), dsn=past.dsn())
    assert again.returncode == 0, again.stderr
    assert "expired in an earlier run" in again.stderr
    assert {path.name for path in place.iterdir()} == there
    assert entries(past, "meshaudit.expiry") == log


def test_not_here_is_not_expired(past: Db, tmp_path: Path) -> None:
    policy(past, "*", "1 day", "1 day")
    archive(past, tmp_path / "a")
    (tmp_path / "b").mkdir()
    said = run("retain", "--to", str(tmp_path / "b"), dsn=past.dsn())
    assert said.returncode == 2
    assert "expired, but not in" in said.stderr
    assert entries(past, "meshaudit.expiry") == []
    assert list((tmp_path / "b").iterdir()) == []


def test_lawful_expiry_is_told_from_removal(past: Db, tmp_path: Path) -> None:
    place = tmp_path / "a"
    names = expired_two(past, place)
    retired = partitions(past.su, "retired")

    def faults(where: Path, *, database: bool = True) -> dict[str, str]:
        log = expired.read_log(past.su) if database else None
        found, over = expired.judged(archive_verify.verify(where, workers=1), where, log)
        assert {m.partition for m in over} <= set(names[:2])
        return {fault.file: fault.problem for fault in found.faults}

    assert faults(place) == {}
    alone = faults(place, database=False)
    assert set(alone) == {f"{name}.parquet" for name in names[:2]}
    assert all("--dsn" in problem for problem in alone.values())

    def copy(name: str) -> Path:
        shutil.copytree(place, tmp_path / name)
        return tmp_path / name

    # removed, not expired
    other = copy("removed")
    (other / f"{retired[-1]}.parquet").unlink()
    assert faults(other) == {f"{retired[-1]}.parquet": "it is missing"}
    # the manifest must stay
    other = copy("manifest")
    (other / f"{names[0]}.manifest.json").unlink()
    assert f"{retired[1]}.manifest.json" in faults(other)
    # a document of one's own
    other = copy("forged")
    (other / f"{retired[-1]}.parquet").unlink()
    body = json.loads((other / f"{names[1]}.expiry.json").read_text())
    digest = archive_verify.parse(Place(other), f"{retired[-1]}.manifest.json").digest
    body |= {"manifest": digest, "partition": retired[-1]}
    forged = json.dumps(body, sort_keys=True, separators=(",", ":")) + "\n"
    (other / f"{retired[-1]}.expiry.json").write_text(forged)
    told = faults(other)
    assert told[f"{retired[-1]}.expiry.json"] == "the log knows of no such expiry"
    assert "no entry of the log" in told[f"{retired[-1]}.parquet"]
    # altered, renamed, cut: named. Gone: the database has it too
    for number, change in enumerate(
        (lambda t: t.replace('"previous"', '"Previous"'), lambda t: t[:-1], lambda t: "", lambda t: t + " ")
    ):
        other = copy(f"altered{number}")
        path = other / f"{names[1]}.expiry.json"
        path.write_text(change(path.read_text()))
        assert set(faults(other)) == {path.name}
    path.rename(path.with_name(f"{retired[-1]}.expiry.json"))
    assert set(faults(other)) == {f"{retired[-1]}.expiry.json"}
    path.with_name(f"{retired[-1]}.expiry.json").unlink()
    assert faults(other) == {}
    # who owns the database takes the entries away, or invents an expiry
    guards(past.su)
    with past.su.transaction(force_rollback=True):
        past.su.execute("delete from meshaudit_private.ledger where secret_table = 'meshaudit.expiry'")
        assert set(faults(place)) == {f"{name}.parquet" for name in names[:2]}
    with past.su.transaction(force_rollback=True):
        past.su.execute(
            "insert into meshaudit_private.expiries (partition, document, lane, seq) values (%s, %s, 1, 1)",
            [retired[-1], forged],
        )
        other = tmp_path / "forged"
        assert "no entry of the log" in faults(other)[f"{retired[-1]}.parquet"]


def test_archives_alone_prove_expiry(past: Db, tmp_path: Path) -> None:
    """Once the newest expiry's entry is in an archive, that speaks for it and for those before."""
    policy(past, "*", "1 day", "1 day")
    ready = partitions(past.su, "ready")
    archive(past, tmp_path, *ready[:3])
    for name in ready[:2]:
        expire.expire(past.su, tmp_path, name)
    # The entry as if it had been made in the last month, which is not archived yet.
    su = past.su
    guards(su)
    su.execute(
        """
        with moved as (
          update meshaudit_private.ledger e set "timestamp" = n.at, hash = meshaudit_private.entry_hash(
            e.prev_hash, e.lane, e.seq, meshaudit_private.entry_tail(
              e.id, e.secret_id, e.access_type, n.at, e.user_identity, e.ip_address, e.operation, e.outcome,
              e.secret_table, e.scope, e.identity_source, e.claimed_identity, e.db_user, e.db_role,
              e.application_name, e.user_agent, e.request_id, e.access_id))
          from (select from_time + interval '1 day' as at from meshaudit.partitions() where partition = %s) n
          where e.secret_table = 'meshaudit.expiry' and e.secret_id like %s
          returning e.lane, e.seq, e.hash)
        update meshaudit_private.lane_heads h set hash = m.hash from moved m
        where h.lane = m.lane and h.seq = m.seq
        """,
        [ready[3], f"{ready[1]} %"],
    )
    for trigger in ("append_only", "chain_entry"):
        guards(su, f"enable always trigger {trigger}")
    archive(past, tmp_path, ready[3])
    alone = ok_json("verify", "--archive", str(tmp_path), dsn="")
    assert alone["intact"], alone
    assert alone["expired"] > 100
    both = ok_json("verify", "--archive", str(tmp_path), dsn=past.dsn())
    assert both["intact"], both


def test_what_does_not_expire(past: Db, tmp_path: Path) -> None:
    place = tmp_path / "a"
    archive(past, place)
    retired = partitions(past.su, "retired")
    operator = past.connect(past.role("op", "meshaudit_operator"))
    expire_it = "select meshaudit.expire_archive(%s)"

    def kept(name: str, why: str) -> None:
        assert why in refused(operator, "MA005", expire_it, name)
        assert why in (plan(past)[name][1] or "")

    kept(retired[0], "scope * is kept for ever")
    policy(past, "*", "1 day", "1 day", settled=False)
    kept(retired[0], "scope * is kept for ever")
    a_week_later(past)
    kept(retired[-1], "it is the newest")
    refused(operator, "MA005", expire_it, "ledger_default")
    refused(operator, "MA005", expire_it, None)
    policy(past, "project7", "1 day", "50 years")
    assert "scope project7 is kept until 20" in (plan(past)[retired[0]][1] or "")
    policy(past, "project7", "1 day", "1 day")

    holds: tuple[tuple[str, bool], ...] = (
        ("secret_id => 'no such secret'", True),  # the database cannot know
        ("user_identity => 'service_0'", True),
        ("scope => 'project1'", True),
        ("scope => 'nowhere'", False),
        ("secret_id => 'x', scope => 'nowhere'", False),
        ("to_time => '2000-01-01'", False),
        ("from_time => now()", False),
        ("from_time => '2000-01-01'", True),
    )
    for condition, stops in holds:
        number = next(past.su.execute(f"select meshaudit.place_hold('case', {condition})".encode()))[0]
        if stops:
            kept(retired[0], f"legal hold {number} may be")
        else:
            assert plan(past)[retired[0]][0] == "expire", condition
        past.su.execute("select meshaudit.lift_hold(%s, 'over')", [number])
    ok("restore", str(place), "--partition", retired[0], dsn=past.dsn())
    refused(operator, "MA005", expire_it, retired[0])
    archive(past, place, retired[0])
    document = operator.execute(expire_it, [retired[0]]).fetchone()
    assert operator.execute(expire_it, [retired[0]]).fetchone() == document
    assert len(entries(past, "meshaudit.expiry")) == 1
    assert "has expired" in fails("restore", str(place), "--partition", retired[0], dsn=past.dsn())
    operator.execute("begin isolation level repeatable read")
    refused(operator, "MA005", expire_it, retired[1])


def test_in_an_object_store(past: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3.server() as endpoint:
        for name, value in (s3.VARIABLES | {"AWS_ENDPOINT_URL": endpoint}).items():
            monkeypatch.setenv(name, value)
        s3.post(f"{endpoint}/archives", method="PUT")
        where = "s3://archives/here"
        names = expired_two(past, where)
        assert Place(where).names(".expiry.json") == [f"{name}.expiry.json" for name in names[:2]]
        assert not {f"{name}.parquet" for name in names[:2]} & set(Place(where).names(".parquet"))
        assert expire.sweep(past.su, where) == []
        found, over = expired.judged(
            archive_verify.verify(where, workers=1), where, expired.read_log(past.su)
        )
        assert found.faults == []
        assert [m.partition for m in over] == names[:2]


def test_status(past: Db, tmp_path: Path) -> None:
    def check(name: str = "retention") -> Any:
        rows = past.su.execute('select "check", ok, detail from meshaudit.status()').fetchall()
        return {row[0]: row[1:] for row in rows}[name]

    assert check() == (True, "no policies: everything stays")
    assert check("legal holds") == (True, "none")
    assert check("empty partitions") == (True, "0 retired periods have left an empty table")
    ready = partitions(past.su, "ready")
    archive(past, tmp_path, ready[0])
    assert not check()[0]
    assert "no policy for scope *" in check()[1]
    policy(past, "*", "1 day", "1 day")
    assert not check()[0]
    assert f"should have been archived: {ready[1]}, {ready[2]}" in check()[1]
    archive(past, tmp_path, *ready[1:3])
    assert f"archives past their period: {ready[0]}, {ready[1]}" in check()[1]
    past.su.execute("select meshaudit.place_hold('case', from_time => '2000-01-01')")
    assert check("legal holds")[1].startswith("1, the oldest of 20")
    assert check("empty partitions")[1].startswith("3 ")


def test_an_expired_periods_table_can_be_dropped(past: Db, tmp_path: Path) -> None:
    """As docs/retention.md says, by a superuser in a quiet moment."""
    names = expired_two(past, tmp_path)
    past.su.execute(
        f"begin; set local lock_timeout = '100ms'; drop table meshaudit_private.{names[0]}; commit".encode()
    )
    assert past.su.execute("select * from meshaudit.verify()").fetchall() == []
    assert ok_json("verify", "--archive", str(tmp_path), dsn=past.dsn())["intact"]
    assert plan(past)[names[0]][0] == "expired"
    past.su.execute("select meshaudit.maintain()")
