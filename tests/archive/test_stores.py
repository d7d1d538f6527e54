"""Archives in an object store: the same commands, the same guarantees, over real HTTP."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from meshaudit import archive_logs, archive_place, archive_verify, remote
from meshaudit.archive import job, writer
from meshaudit.archive.lock import exclusive
from meshaudit.archive.store import store
from meshaudit.archive_place import Place, Ranges
from meshaudit.errors import BadArgument, MeshauditError, StoreFailed
from meshaudit.queries import Filters
from tests.archive import s3
from tests.archive.damage import unfound
from tests.archive.history import load, partitions
from tests.archive.killing import kill_and_rerun
from tests.cli_support import environment, fails, ok, ok_json, run
from tests.support import Db

SOON = "2999-01-01"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3.server() as url:
        s3.post(f"{url}/archives", method="PUT")
        yield url


@pytest.fixture
def url(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A place of this test's own in the bucket; the usual variables lead to it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in (s3.VARIABLES | {"AWS_ENDPOINT_URL": endpoint}).items():
        monkeypatch.setenv(name, value)
    return f"s3://archives/of/{request.node.name}"


@pytest.fixture
def past(db: Db) -> Db:
    load(db.su, months=3, rows=600)
    return db


def accesses(text: str) -> list[object]:
    return [row for row in json.loads(text) if row["secret_table"] == "meshaudit.secrets"]


def test_there_and_back(past: Db, url: str) -> None:
    logs = ("logs", "--format", "json", "--limit", "0")
    before = accesses(ok(*logs, dsn=past.dsn()))
    some = accesses(ok(*logs, "--scope", "project7", "--ip", "10.0.0.0/16", dsn=past.dsn()))
    names = partitions(past.su, "ready")
    done = ok_json("archive", "--to", url, "--before", SOON, dsn=past.dsn())
    assert [(row["partition"], row["entries"]) for row in done] == [
        (name, row["entries"]) for name, row in zip(names, done, strict=True)
    ]
    assert sum(row["entries"] for row in done) == 600
    assert partitions(past.su, "retired") == names
    assert ok_json("verify", "--archive", url, dsn="")["archived"] == 600
    both = ok_json("verify", "--archive", url + "/", dsn=past.dsn())
    assert (both["intact"], both["archived"], both["retired"]) == (True, 600, 600)
    assert accesses(ok(*logs, "--archive", url)) == before
    assert accesses(ok(*logs, "--archive", url, "--scope", "project7", "--ip", "10.0.0.0/16")) == some
    assert accesses(ok(*logs, "--archive", url, dsn=past.dsn())) == before
    operator = past.role("op", "meshaudit_operator")
    ok("restore", url, "--partition", names[1], dsn=past.dsn(operator))
    assert partitions(past.su, "restored") == [names[1]]
    assert "has no archive of" in fails(
        "restore", url, "--partition", "ledger_1999_01", dsn=past.dsn(operator)
    )
    # nothing is removed from under a restored partition when an archiver fails beside it
    with psycopg.connect(past.dsn(), autocommit=True) as conn, pytest.MonkeyPatch.context() as patch:
        ready = job.candidates(conn, datetime(2999, 1, 1, tzinfo=UTC))
        patch.setattr(job, "_retire", _broken)
        with pytest.raises(MeshauditError, match="broken"):
            list(job.archive(conn, past.dsn(), url, [*ready, *ready], lambda *_: None))
    assert ok_json("verify", "--archive", url, dsn=past.dsn())["intact"]
    # retired again, to what is there already
    ok("archive", "--to", url, "--before", SOON, dsn=past.dsn())
    assert partitions(past.su, "retired") == names
    assert ok_json("verify", "--archive", url, dsn=past.dsn())["intact"]


def _broken(*_: object) -> str:
    raise MeshauditError("broken")


def test_damage_in_a_store_is_named(past: Db, url: str, tmp_path: Path) -> None:
    ok("archive", "--to", str(tmp_path / "a"), "--before", SOON, dsn=past.dsn())
    count = 0

    def uploaded(copy: Path) -> str:
        nonlocal count
        count += 1
        there = store(f"{url}/{count}")
        for path in copy.iterdir():
            there.put(path.name, path.read_bytes(), replace=False)
        return there.where

    assert list(unfound(tmp_path / "a", 12, 5, tmp_path, uploaded)) == []
    assert archive_verify.verify(uploaded(tmp_path / "a")).faults == []
    place = store(f"{url}/{count}")
    gone = place.names()[-1]
    place.delete(gone)
    done = run("verify", "--archive", place.where)
    assert (done.returncode, f"altered: {gone}: it is missing" in done.stdout) == (1, True), done


def test_only_the_row_groups_that_matter(past: Db, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "ROW_GROUP", 20)
    # as if it were much: verified in processes of their own
    monkeypatch.setattr(job, "_SMALL", 0)
    monkeypatch.setattr(archive_verify, "_SMALL", 0)
    with psycopg.connect(past.dsn(), autocommit=True) as conn:
        ready = job.candidates(conn, datetime(2999, 1, 1, tzinfo=UTC))
        done = list(job.archive(conn, past.dsn(), url, ready, lambda *_: None))
    verified = archive_verify.verify(url)
    assert (verified.faults, verified.entries) == ([], sum(row.entries for row in done))
    monkeypatch.setattr(archive_logs, "_AHEAD", 64)
    fetched: list[int] = []
    read = Ranges.read
    monkeypatch.setattr(Ranges, "read", lambda self, size=-1: _counted(read(self, size), fetched))
    start, end = ready[1].start, ready[1].end
    middle = start + (end - start) / 2
    everything = [entry for page in archive_logs.search(url, Filters()) for entry in page]
    whole = sum(fetched)
    fetched.clear()
    assert list(archive_logs.search(url, Filters(to_time=datetime(2000, 1, 1, tzinfo=UTC)))) == []
    footers = sum(fetched)
    fetched.clear()
    found = [e for page in archive_logs.search(url, Filters(from_time=middle, to_time=end)) for e in page]
    assert found == [entry for entry in everything if middle <= entry.timestamp < end]
    assert sum(fetched) - footers < (whole - footers) / 2, (sum(fetched), footers, whole)
    assert len(done) == 3


def _counted(data: bytes, into: list[int]) -> bytes:
    into.append(len(data))
    return data


def test_what_cannot_be_reached(past: Db, url: str, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = "s3://no-such-bucket/archives"
    for args in (
        ("archive", "--to", nowhere, "--before", SOON),
        ("verify", "--archive", nowhere),
        ("logs", "--archive", nowhere),
        ("restore", nowhere, "--partition", "ledger_2020_01"),
    ):
        told = fails(*args, dsn="" if args[0] in ("verify", "logs") else past.dsn())
        assert "there is no such bucket" in told, told
    assert len(partitions(past.su, "ready")) == 3
    assert "holds no archive" in fails("verify", "--archive", url)
    for wrong in ("s3://", "ftp://host/place", "s3://bucket/a?b=c"):
        assert "is no place for archives" in fails("verify", "--archive", wrong)
    # the server asks who it is from now on
    s3.post(f"{endpoint}/moto-api/reset-auth", b"0")
    try:
        told = fails("verify", "--archive", url)
    finally:
        s3.post(f"{endpoint}/moto-api/reset-auth", b"inf")
    assert "access is denied" in told
    assert "AWS_ACCESS_KEY_ID" in told
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setitem(remote._RETRY, "max_retries", 0)
    with pytest.raises(StoreFailed, match="does not answer") as caught:
        archive_verify.verify(url)
    assert "AWS_ENDPOINT_URL" in caught.value.hint


def test_what_stores_say() -> None:
    for said, told in (
        ("PUT http://169.254.169.254/latest/api/token - 403 Forbidden", "there are no credentials"),
        ("Account must be specified", "there are no credentials"),
        ("status 403 Forbidden: SignatureDoesNotMatch", "access is denied"),
        ("HTTP error: error sending request", "does not answer"),
        ("something\nelse", "something"),
    ):
        error = remote._translated("s3://a/b", Exception(said))
        assert told in error.message
        assert "\n" not in error.message
        assert error.hint


UPLOAD = """
import sys
from meshaudit.archive.store import store
with store(sys.argv[1]).write("big") as file:
    for _ in range(9):
        file.write(bytes(8 << 20))
    print("on its way", flush=True)
    sys.stdin.read()
"""


def test_killed_while_uploading(url: str) -> None:
    """Several parts are there, the object is not; the next upload is whole."""
    command = [sys.executable, "-c", UPLOAD, url]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on its way\n"
        process.send_signal(signal.SIGKILL)
    place = store(url)
    assert place.names() == []
    data = random.Random(1).randbytes(40 << 20)
    with contextlib.suppress(KeyError), place.write("big") as file:
        file.write(data)
        raise KeyError
    assert place.names() == []
    with place.write("big") as file:
        for at in range(0, len(data), 1 << 20):
            file.write(data[at : at + (1 << 20)])
    assert place.size("big") == len(data)
    with Place(url).open("big") as read:
        assert b"".join(archive_place.pieces(read)) == data
        read.seek(-7, 2)
        assert read.read() == data[-7:]
        read.seek(17 << 20)
        assert read.read(10) == data[17 << 20 :][:10]
        # what is read is always one version of it
        place.put("big", data[::-1], replace=True)
        with pytest.raises(OSError, match="replaced while it was read"):
            read.read(10)


def test_killed_and_run_again(past: Db, url: str) -> None:
    kill_and_rerun(past.su, past.dsn(), url, 3, random.Random(3))


def test_two_archivers(past: Db, url: str) -> None:
    with exclusive(past.dsn()) as still_ours:
        told = fails("archive", "--to", url, "--before", SOON, dsn=past.dsn())
        still_ours()
    assert "another archiver is at work" in told
    assert store(url).names() == []
    # nor those of two ledgers
    place = store(url)
    place.prepare(UUID(int=1))
    place.prepare(UUID(int=1))
    with pytest.raises(BadArgument, match="another ledger's"):
        place.prepare(UUID(int=2))
    assert "another ledger's" in fails("archive", "--to", url, "--before", SOON, dsn=past.dsn())
    for there in (place, store(url)):
        with pytest.raises(FileExistsError):
            there.put("meshaudit-ledger", b"", replace=False)


def test_the_lock_that_was_lost(past: Db) -> None:
    with exclusive(past.dsn()) as still_ours:
        past.su.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and query = 'select meshaudit.begin_archiving()'"
        )
        with pytest.raises(MeshauditError, match="lock was lost"):
            still_ours()


def test_a_directory_by_url(past: Db, tmp_path: Path) -> None:
    where = f"file://{tmp_path}/an%20archive"
    ok("archive", "--to", where, "--before", SOON, dsn=past.dsn())
    assert len(list((tmp_path / "an archive").glob("*.parquet"))) == 3
    assert ok_json("verify", "--archive", where, dsn=past.dsn())["intact"]
