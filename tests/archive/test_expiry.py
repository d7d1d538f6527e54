"""Archives whose period is over: the log says so first, the file goes, and verify tells that from removal."""

import json
import shutil
from pathlib import Path

import pytest

from meshaudit import archive_verify, expired
from meshaudit.archive import expire
from meshaudit.archive_place import Place
from tests.archive import s3
from tests.archive.history import guards, partitions
from tests.archive.support import (
    a_week_later,
    archive,
    entries,
    expired_two,
    plan,
    policy,
    refused,
)
from tests.cli_support import fails, ok, ok_json, run
from tests.support import Db


def test_not_here_is_not_expired(four_months: Db, tmp_path: Path) -> None:
    policy(four_months, "*", "1 day", "1 day")
    archive(four_months, tmp_path / "a")
    (tmp_path / "b").mkdir()
    said = run("retain", "--to", str(tmp_path / "b"), dsn=four_months.dsn())
    assert said.returncode == 2
    assert "expired, but not in" in said.stderr
    assert entries(four_months, "meshaudit.expiry") == []
    assert list((tmp_path / "b").iterdir()) == []


def test_lawful_expiry_is_told_from_removal(four_months: Db, tmp_path: Path) -> None:
    place = tmp_path / "a"
    names = expired_two(four_months, place)
    retired = partitions(four_months.su, "retired")

    def faults(where: Path, *, database: bool = True) -> dict[str, str]:
        log = expired.read_log(four_months.su) if database else None
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
    guards(four_months.su)
    with four_months.su.transaction(force_rollback=True):
        four_months.su.execute("delete from meshaudit_private.ledger where secret_table = 'meshaudit.expiry'")
        assert set(faults(place)) == {f"{name}.parquet" for name in names[:2]}
    with four_months.su.transaction(force_rollback=True):
        four_months.su.execute(
            "insert into meshaudit_private.expiries (partition, document, lane, seq) values (%s, %s, 1, 1)",
            [retired[-1], forged],
        )
        other = tmp_path / "forged"
        assert "no entry of the log" in faults(other)[f"{retired[-1]}.parquet"]


def test_archives_alone_prove_expiry(four_months: Db, tmp_path: Path) -> None:
    """Once the newest expiry's entry is in an archive, that speaks for it and for those before."""
    policy(four_months, "*", "1 day", "1 day")
    ready = partitions(four_months.su, "ready")
    archive(four_months, tmp_path, *ready[:3])
    for name in ready[:2]:
        expire.expire(four_months.su, tmp_path, name)
    # The entry as if it had been made in the last month, which is not archived yet.
    su = four_months.su
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
    archive(four_months, tmp_path, ready[3])
    alone = ok_json("verify", "--archive", str(tmp_path), dsn="")
    assert alone["intact"], alone
    assert alone["expired"] > 100
    both = ok_json("verify", "--archive", str(tmp_path), dsn=four_months.dsn())
    assert both["intact"], both


def test_what_does_not_expire(four_months: Db, tmp_path: Path) -> None:
    place = tmp_path / "a"
    archive(four_months, place)
    retired = partitions(four_months.su, "retired")
    operator = four_months.connect(four_months.role("op", "meshaudit_operator"))
    expire_it = "select meshaudit.expire_archive(%s)"

    def kept(name: str, why: str) -> None:
        assert why in refused(operator, "MA005", expire_it, name)
        assert why in (plan(four_months)[name][1] or "")

    kept(retired[0], "scope * is kept for ever")
    policy(four_months, "*", "1 day", "1 day", settled=False)
    kept(retired[0], "scope * is kept for ever")
    a_week_later(four_months)
    kept(retired[-1], "it is the newest")
    refused(operator, "MA005", expire_it, "ledger_default")
    refused(operator, "MA005", expire_it, None)
    policy(four_months, "project7", "1 day", "50 years")
    assert "scope project7 is kept until 20" in (plan(four_months)[retired[0]][1] or "")
    policy(four_months, "project7", "1 day", "1 day")

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
        number = next(four_months.su.execute(f"select meshaudit.place_hold('case', {condition})".encode()))[0]
        if stops:
            kept(retired[0], f"legal hold {number} may be")
        else:
            assert plan(four_months)[retired[0]][0] == "expire", condition
        four_months.su.execute("select meshaudit.lift_hold(%s, 'over')", [number])
    ok("restore", str(place), "--partition", retired[0], dsn=four_months.dsn())
    refused(operator, "MA005", expire_it, retired[0])
    archive(four_months, place, retired[0])
    document = operator.execute(expire_it, [retired[0]]).fetchone()
    assert operator.execute(expire_it, [retired[0]]).fetchone() == document
    assert len(entries(four_months, "meshaudit.expiry")) == 1
    assert "has expired" in fails("restore", str(place), "--partition", retired[0], dsn=four_months.dsn())
    operator.execute("begin isolation level repeatable read")
    refused(operator, "MA005", expire_it, retired[1])


def test_in_an_object_store(four_months: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3.server() as endpoint:
        for name, value in (s3.VARIABLES | {"AWS_ENDPOINT_URL": endpoint}).items():
            monkeypatch.setenv(name, value)
        s3.post(f"{endpoint}/archives", method="PUT")
        where = "s3://archives/here"
        names = expired_two(four_months, where)
        assert Place(where).names(".expiry.json") == [f"{name}.expiry.json" for name in names[:2]]
        assert not {f"{name}.parquet" for name in names[:2]} & set(Place(where).names(".parquet"))
        assert expire.sweep(four_months.su, where) == []
        found, over = expired.judged(
            archive_verify.verify(where, workers=1), where, expired.read_log(four_months.su)
        )
        assert found.faults == []
        assert [m.partition for m in over] == names[:2]


def test_an_expired_periods_table_can_be_dropped(four_months: Db, tmp_path: Path) -> None:
    """As docs/retention.md says, by a superuser in a quiet moment."""
    names = expired_two(four_months, tmp_path)
    four_months.su.execute(
        f"begin; set local lock_timeout = '100ms'; drop table meshaudit_private.{names[0]}; commit".encode()
    )
    assert four_months.su.execute("select * from meshaudit.verify()").fetchall() == []
    assert ok_json("verify", "--archive", str(tmp_path), dsn=four_months.dsn())["intact"]
    assert plan(four_months)[names[0]][0] == "expired"
    four_months.su.execute("select meshaudit.maintain()")
