"""Archive, verify, retire: what leaves the ledger is proved first, and what has left it stays provable."""

import json
import random
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest

from meshaudit.archive import job
from meshaudit.archive_rows import read
from meshaudit.checkpoint import parse_checkpoint, take_checkpoint
from meshaudit.verify import verify
from tests.archive.damage import unfound
from tests.archive.history import guards, partitions
from tests.archive.killing import kill_and_rerun
from tests.archive.restore_by_hand import restore
from tests.archive.support import (
    MONTHS,
    ROWS,
    SOON,
    everything,
    found,
)
from tests.cli_support import fails, ok, ok_json, run
from tests.support import Db


def test_what_is_archived_is_what_was_there(past: Db, tmp_path: Path) -> None:
    before = everything(past)
    kept = parse_checkpoint(take_checkpoint(past.su))
    dry = ok_json("archive", "--to", str(tmp_path / "a"), "--before", SOON, "--dry-run", dsn=past.dsn())
    assert [row["state"] for row in dry if row["state"] != "kept"] == ["ready"] * MONTHS
    assert not (tmp_path / "a").exists()
    done = ok_json("archive", "--to", str(tmp_path / "a"), "--before", SOON, dsn=past.dsn())
    assert sum(row["entries"] for row in done) == ROWS
    assert partitions(past.su, "retired") == [row["partition"] for row in done]
    left = past.su.execute("select secret_table, operation, secret_id from meshaudit.audit_logs order by id")
    assert left.fetchall() == [
        ("meshaudit.archive", "delete", f"{row['partition']} {row['digest']}") for row in done
    ]
    table = pq.read_table(sorted((tmp_path / "a").glob("*.parquet")))
    rows = {(row["lane"], row["seq"]): row for row in table.to_pylist()}
    names = [
        column.name
        for column in past.su.execute("select * from meshaudit.audit_logs limit 0").description or ()
    ]
    assert len(rows) == ROWS
    for values in before:
        entry = dict(zip(names, values, strict=True))
        row = rows[entry["lane"], entry["seq"]]
        for name in set(names) - {"ip_address", "access_id", "prev_hash"}:
            assert row[name] == entry[name], name
        assert row["access_id"] == entry["access_id"].bytes
        assert row["prev_hash"] in (None, entry["prev_hash"])
    # lawful, and told so
    assert found(past) == []
    report = verify(past.su, checkpoint=kept)
    assert report.intact
    assert report.retired == ROWS
    assert ok_json("archive", "--to", str(tmp_path / "a"), "--before", SOON, dsn=past.dsn()) == []


def test_archives_alone_and_with_the_database(archived: tuple[Db, Path], tmp_path: Path) -> None:
    db, place = archived
    alone = ok_json("verify", "--archive", str(place), dsn="")
    assert (alone["intact"], alone["archives"], alone["archived"]) == (True, MONTHS, ROWS)
    both = ok_json("verify", "--archive", str(place), dsn=db.dsn())
    assert both["intact"]
    assert both["archived"] == both["retired"] == ROWS
    ok("checkpoint", "--output", str(tmp_path / "c"), dsn=db.dsn())
    assert "none has gone" in ok(
        "verify", "--archive", str(place), "--checkpoint", str(tmp_path / "c"), dsn=db.dsn()
    )
    assert "--record takes a database" in fails("verify", "--archive", str(place), "--record")


def test_a_checkpoint_from_before(past: Db, tmp_path: Path) -> None:
    """Whose entries are inside an archive: only the archive can tell."""
    su = past.su
    document = take_checkpoint(su)
    for head in document["lanes"]:
        row = su.execute(
            "select seq, encode(hash, 'hex') from meshaudit.audit_logs where lane = %s and seq = %s",
            [head["lane"], head["seq"] // 2],
        ).fetchone()
        assert row is not None
        head["seq"], head["hash"] = row
    (tmp_path / "c").write_text(json.dumps(document))
    place = str(tmp_path / "a")
    ok("archive", "--to", place, "--before", SOON, dsn=past.dsn())
    args = ("verify", "--checkpoint", str(tmp_path / "c"))
    assert "end in an archive" in ok(*args, dsn=past.dsn())
    assert "none has gone" in ok(*args, "--archive", place, dsn=past.dsn())
    document["lanes"][0]["hash"] = "00" * 32
    (tmp_path / "c").write_text(json.dumps(document))
    assert run(*args, "--archive", place, dsn=past.dsn()).returncode == 1


def test_what_is_not_lawful_is_told(past: Db, tmp_path: Path) -> None:
    names = partitions(past.su, "ready")
    ok("archive", "--to", str(tmp_path), "--before", SOON, dsn=past.dsn())
    su = past.su
    entries = su.execute("select id, secret_id from meshaudit_private.ledger order by id").fetchall()
    guards(su)
    # the last retirement's entry speaks for all, since each manifest names the one before
    with su.transaction(force_rollback=True):
        su.execute("delete from meshaudit_private.ledger where secret_id <> %s", [entries[-1][1]])
        # of the retired nothing: only the two entries themselves
        assert {row[3].split()[0] for row in verify_inside(su)} == {"deleted"}
    with su.transaction(force_rollback=True):
        su.execute("delete from meshaudit_private.ledger where secret_id = %s", [entries[-1][1]])
        assert len(verify_inside(su)) > len(entries)
    # a manifest that says something else
    with su.transaction(force_rollback=True):
        su.execute(
            "update meshaudit_private.retirements set manifest = replace(manifest, '\"to\"', '\"To\"')"
            " where partition = %s",
            [names[1]],
        )
        assert [p for p in verify_inside(su) if p[3].startswith("retired without an entry")]
    # retired stretches that nobody retired: entries deleted, and the look-up table to match
    with su.transaction(force_rollback=True):
        su.execute("insert into meshaudit_private.retired_runs select 400, 1, 9, '', '', 'x'")
        assert "retired without an entry (entries 1 to 9)" in [row[3] for row in verify_inside(su)]
    assert verify_inside(su) == []


def verify_inside(su: psycopg.Connection[Any]) -> list[Any]:
    return su.execute("select * from meshaudit.verify()").fetchall()


def test_entries_missing_beside_what_is_retired(past: Db, tmp_path: Path) -> None:
    """The middle month retired; then entries go on either side of it."""
    su = past.su
    names = partitions(past.su, "ready")
    ok("archive", "--to", str(tmp_path), "--before", SOON, dsn=past.dsn())
    restore(su, tmp_path, names[0])
    restore(su, tmp_path, names[2])
    assert found(past) == []
    runs = su.execute(
        "select lane, first_seq, last_seq from meshaudit_private.retired_runs order by lane, first_seq"
    ).fetchall()
    lane, first, last = runs[len(runs) // 2]
    where = "where lane = %s and seq = any (%s)"
    for seqs in ([first - 1], [last + 1], [first - 2, first - 1], [last + 1, last + 2]):
        su.execute(
            f"create temp table kept as select * from meshaudit_private.ledger {where}".encode(), [lane, seqs]
        )
        gone = su.execute(f"delete from meshaudit_private.ledger {where}".encode(), [lane, seqs]).rowcount
        expected = [(lane, seqs[0])] if gone == len(seqs) else None
        assert expected is None or [(p.lane, p.seq) for p in found(past)] == expected
        su.execute("insert into meshaudit_private.ledger table kept")
        su.execute("drop table kept")
    assert found(past) == []


def test_the_operator_cannot_delete_otherwise(past: Db, tmp_path: Path) -> None:
    operator = past.connect(past.role("op", "meshaudit_operator"))
    name = partitions(past.su, "ready")[0]
    both = past.role("both", "meshaudit_operator")
    past.su.execute("select meshaudit.grant_auditor(%s)", [both])
    place = tmp_path / "a"
    texts: list[str] = []
    with past.connect(both) as conn, pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "_retire", lambda *given: texts.append(given[2]))
        list(job.archive(conn, past.dsn(both), place, job.candidates(conn, _far())[:1], lambda *_: None))
    body = json.loads(texts[0])

    def refused(part: str, text: str, state: str = "MA005") -> None:
        with pytest.raises(psycopg.Error) as caught:
            operator.execute("select meshaudit.retire_partition(%s, %s)", [part, text])
        assert caught.value.sqlstate == state, caught.value

    refused("ledger_default", texts[0])
    refused("no_such", texts[0])
    refused(partitions(past.su, "ready")[1], texts[0])
    current = past.su.execute(
        "select partition from meshaudit.partitions() where from_time <= now() and to_time > now()"
    ).fetchone()
    assert current is not None
    refused(current[0], json.dumps(body | {"partition": current[0]}))
    for text in ("", "{}", "[]", "null", "x", '{"format": 1}', "\u00e9"):
        refused(name, text)
    changes: tuple[dict[str, Any], ...] = (
        {"entries": body["entries"] - 1},
        {"entries": "1"},
        {"runs": body["runs"][1:]},
        {"runs": None},
        {"runs": "x"},
        {"from": "x"},
        {"from": body["to"]},
        {"previous": "00" * 32},
        {"ledger_id": "00000000-0000-0000-0000-000000000000"},
        {"files": []},
        {"format": "meshaudit archive v2"},
    )
    for change in changes:
        refused(name, json.dumps(body | change))
    run_ = [*body["runs"][0]]
    for at, other in ((1, run_[1] + 1), (2, run_[2] - 1), (3, "00" * 32), (4, "00" * 32)):
        refused(name, json.dumps(body | {"runs": [[*run_[:at], other, *run_[at + 1 :]], *body["runs"][1:]]}))
    hold = next(past.su.execute("select meshaudit.place_hold('case 1', scope => 'project1')"))[0]
    refused(name, texts[0])
    assert past.su.execute("select meshaudit.lift_hold(%s, 'over')", [hold]).fetchone() == (True,)
    with past.connect(past.role("nobody")) as nobody, pytest.raises(psycopg.errors.InsufficientPrivilege):
        nobody.execute("select meshaudit.retire_partition(%s, %s)", [name, texts[0]])
    assert everything(past)[: ROWS // MONTHS]
    operator.execute("select meshaudit.retire_partition(%s, %s)", [name, texts[0]])
    refused(name, texts[0])
    with pytest.raises(psycopg.Error) as caught:
        past.su.execute(f"truncate meshaudit_private.{partitions(past.su, 'ready')[0]}".encode())
    assert caught.value.sqlstate == "MA003"
    with pytest.raises(psycopg.Error) as caught:
        past.su.execute(f"truncate meshaudit_private.{name}".encode())
    assert caught.value.sqlstate == "MA003", "the guard is back"


def _far() -> datetime:
    return datetime(2999, 1, 1, tzinfo=UTC)


def test_no_access_waits(past: Db, tmp_path: Path) -> None:
    """Services read on, with a lock_timeout that waiting for an archiver would meet (two writers may extend a table at once: 1 ms would meet that); a transaction stays open throughout."""
    role = past.role("svc", "meshaudit_client")
    idle = past.connect(role, autocommit=False)
    idle.execute("select meshaudit.write_secret('idle', 'v')")
    stop, failures, counts = threading.Event(), [], [0, 0]

    def use(number: int) -> None:
        try:
            with psycopg.connect(past.dsn(role), autocommit=True) as conn:
                conn.execute("set lock_timeout = '50ms'")
                conn.execute("select meshaudit.write_secret(%s, 'v')", [f"k{number}"])
                while not stop.is_set():
                    conn.execute("select meshaudit.read_secret_by_key(%s)", [f"k{number}"])
                    counts[number] += 1
        except psycopg.Error as exc:
            failures.append(exc)

    threads = [threading.Thread(target=use, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        ok("archive", "--to", str(tmp_path), "--before", SOON, dsn=past.dsn())
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert min(counts) > 10
    assert len(partitions(past.su, "retired")) == MONTHS
    idle.commit()
    assert found(past) == []
    report = run("verify", "--archive", str(tmp_path), dsn=past.dsn())
    assert report.returncode == 0, report.stdout


def test_an_altered_partition_is_not_retired(past: Db, tmp_path: Path) -> None:
    name = partitions(past.su, "ready")[0]
    guards(past.su)
    past.su.execute(f"update meshaudit_private.{name} set scope = 'x' where ctid = '(0,5)'".encode())
    for trigger in ("append_only", "chain_entry"):
        guards(past.su, f"enable always trigger {trigger}")
    done = run("archive", "--to", str(tmp_path), "--before", SOON, dsn=past.dsn())
    assert done.returncode == 2
    assert "is not what was hashed" in done.stderr
    assert partitions(past.su, "retired") == []
    assert list(tmp_path.iterdir()) == []


def test_a_range_of_time_beside_what_is_retired(archived: tuple[Db, Path]) -> None:
    db, _ = archived
    rows = db.su.execute("select * from meshaudit.verify(now() - interval '1 hour', null)").fetchall()
    assert rows == []
    assert run("verify", "--from", "2020-01-01", dsn=db.dsn()).returncode == 0


def test_row_groups_are_skippable(archived: tuple[Db, Path]) -> None:
    path = min(archived[1].glob("*.parquet"))
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for name in ("timestamp", "secret_id", "user_identity", "lane", "seq"):
        assert columns[name].is_stats_set, name
        assert columns[name].statistics.has_min_max, name
    plain = {name for name, column in columns.items() if column.compression == "UNCOMPRESSED"}
    assert plain == {"access_id", "hash"}, "which nothing compresses"
    assert {column.compression for name, column in columns.items() if name not in plain} == {"ZSTD"}
    assert read(path).entries == group.num_rows


def test_damage_is_found_and_named(archived: tuple[Db, Path], tmp_path: Path) -> None:
    assert list(unfound(archived[1], 60, 7, tmp_path)) == []


def test_a_missing_archive_is_named(archived: tuple[Db, Path], tmp_path: Path) -> None:
    """Both its files: a gap inside shows by itself, the last one only beside the database."""
    db, place = archived
    names = sorted(path.name.partition(".")[0] for path in place.glob("*.parquet"))
    for number, name in enumerate(names):
        copy = tmp_path / name
        shutil.copytree(place, copy)
        for path in copy.glob(f"{name}.*"):
            path.unlink()
        alone = run("verify", "--archive", str(copy))
        assert alone.returncode == (0 if number == len(names) - 1 else 1), alone.stdout
        both = run("verify", "--archive", str(copy), dsn=db.dsn())
        assert both.returncode == 1
        assert f"{name}.manifest.json: missing" in both.stdout


def test_killed_and_run_again(past: Db, tmp_path: Path) -> None:
    kill_and_rerun(past.su, past.dsn(), tmp_path / "a", 3, random.Random(3))


def test_what_cannot_be_checked(archived: tuple[Db, Path], tmp_path: Path) -> None:
    assert "holds no archive" in fails("verify", "--archive", str(tmp_path))
    assert "not a directory" in fails("verify", "--archive", str(tmp_path / "none"))
    assert "whole archives" in fails("verify", "--archive", str(archived[1]), "--from", "2020-01-01")
    (tmp_path / "file").touch()
    assert "not a directory" in fails(
        "archive", "--to", str(tmp_path / "file"), "--before", SOON, dsn=archived[0].dsn()
    )


def test_beside_an_armed_journal(past: Db, tmp_path: Path) -> None:
    """While it may hold records of a partition's time, the partition stays."""
    past.su.execute("select meshaudit.arm_journal()")
    try:
        # an access whose transaction is still open when it is sealed
        service = past.connect(past.role("svc", "meshaudit_client"), autocommit=False)
        service.execute("select meshaudit.write_secret('k', 'v')")
        past.su.execute("select meshaudit.seal()")
        assert len(partitions(past.su, "ready")) == MONTHS
        past.su.execute(
            "update meshaudit_private.journal_progress set sealed_at = now() - interval '2 hours'"
        )
        assert partitions(past.su, "ready") == []
        past.su.execute("select meshaudit.seal()")
        role = past.role("archiver", "meshaudit_operator")
        past.su.execute("select meshaudit.grant_auditor(%s)", [role])
        ok("archive", "--to", str(tmp_path), "--before", SOON, dsn=past.dsn(role))
        service.commit()
        past.su.execute("select meshaudit.seal()")
        ok("verify", "--archive", str(tmp_path), dsn=past.dsn(role))
    finally:
        past.su.execute("select meshaudit.disarm_journal()")


@pytest.mark.parametrize(
    "change",
    [
        "select",
        "delete from {leaf} where (lane, seq) = (select lane, max(seq) - 3 from {leaf} group by lane limit 1)",
        "delete from {leaf} where seq = (select min(seq) + 1 from {leaf} t where t.lane = {leaf}.lane)",
        "update {leaf} set prev_hash = sha256('x') where (lane, seq) = (select lane, max(seq) - 2 from {leaf} group by lane limit 1)",
        "update {leaf} set hash = sha256('x') where (lane, seq) = (select lane, min(seq) + 2 from {leaf} group by lane limit 1)",
        "update {leaf} set hash = sha256('x') where ctid = '(0,1)'",
        "delete from {leaf}",
    ],
)
def test_counting_tells_what_comparing_each_link_does(past: Db, change: str) -> None:
    leaf = f"meshaudit_private.{partitions(past.su, 'ready')[0]}"
    guards(past.su)
    past.su.execute(change.format(leaf=leaf).encode())
    one, two = (
        past.su.execute(f"select * from meshaudit_private.{call} order by 1, 2".encode()).fetchall()
        for call in (f"partition_stretches('{leaf}')", f"stretches('{leaf}', null)")
    )
    assert one == two
    assert bool(one) == (change != "delete from {leaf}")
