"""The command line, as real processes: what it prints, its exit codes, and its errors of one line."""

import csv
import io
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import meshaudit
from meshaudit import output
from meshaudit.cli import app
from tests.cli_support import PROGRAM, environment, fails, ok, ok_json, run
from tests.flavours import Templates
from tests.support import Db, wait_until

HOSTILE = "\x1b[31mred\r\n\u202eevil"


@pytest.fixture(scope="module")
def filled(template: Templates) -> Iterator[Db]:
    """A database with a few entries of two logins, for tests that only read."""
    db = template.clone("superuser")
    one, two = db.role("one", "meshaudit_client"), db.role("two", "meshaudit_client")
    with psycopg.connect(db.dsn(one), autocommit=True, application_name="one's") as conn:
        secret = conn.execute("select meshaudit.write_secret('k', 'v', 'red')").fetchone()
        assert secret is not None
    with psycopg.connect(db.dsn(two), autocommit=True) as conn:
        conn.execute("select meshaudit.write_secret('k', 'v', %s)", [HOSTILE])
        conn.execute("select meshaudit.read_secret(%s)", secret)
        conn.execute("select meshaudit.delete_secret(%s)", secret)
    yield db
    db.drop()


def told(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Entries, less those that the searches of these tests leave."""
    return [row for row in rows if row["secret_table"] != "meshaudit.audit_logs"]


def test_version_and_module() -> None:
    assert ok("--version") == f"meshaudit {meshaudit.__version__}\n"


# Filters and formats.


def test_filters(filled: Db, capsys: pytest.CaptureFixture[str]) -> None:
    rows = told(ok_json("logs", dsn=filled.dsn()))
    assert [row["operation"] for row in rows] == ["delete", "read", "create", "create"]
    deleted, read, hostile, created = rows
    assert read["secret_id"] == deleted["secret_id"] == created["secret_id"]
    address = str(read["ip_address"] or "")
    moments = {"read": str(read["timestamp"]), "deleted": str(deleted["timestamp"])}
    cases: list[tuple[list[str], list[dict[str, object]]]] = [
        (["--secret-id", str(created["secret_id"])], [deleted, read, created]),
        (["--secret-id", ""], []),
        (["--user-identity", str(created["user_identity"])], [created]),
        (["--access-type", "read"], [read]),
        (["--operation", "delete"], [deleted]),
        (["--outcome", "denied"], []),
        (["--scope", "red"], [deleted, read, created]),
        (["--scope", HOSTILE], [hostile]),
        (["--from", moments["read"]], [deleted, read]),
        (["--to", moments["read"]], [hostile, created]),
        (["--from", moments["read"], "--to", moments["deleted"]], [read]),
        (["--from", "2001-01-01", "--to", "2001-01-02T03:04:05+06:00"], []),
        (["--since", "1d", "--operation", "delete", "--limit", "1"], [deleted]),
        (["--ip", address] if address else ["--limit", "0"], rows),
        (["--ip", "203.0.113.0/24"], []),
        (["--scope", "red", "--access-type", "write", "--since", "1h"], [deleted, created]),
    ]
    for args, expected in cases:
        # Here, not in a process: there are many, and each would spend its time on starting.
        with pytest.raises(SystemExit) as ended:
            app(["--json", "logs", *args, "--dsn", filled.dsn()])
        assert ended.value.code == 0
        assert told(json.loads(capsys.readouterr().out)) == expected, args


def test_json_has_the_columns_of_the_view(filled: Db) -> None:
    cursor = filled.su.execute('select * from meshaudit.audit_logs order by "timestamp" desc, id desc')
    assert cursor.description is not None
    rows = ok_json("logs", dsn=filled.dsn())
    assert list(rows[0]) == [column.name for column in cursor.description]
    for row, entry in zip(rows, cursor.fetchall(), strict=True):
        assert (row["id"], row["hash"]) == (entry[0], entry[-1].hex())
        assert row["timestamp"].endswith("Z")
    assert told(rows)[2]["scope"] == HOSTILE


def test_csv_is_the_json(filled: Db) -> None:
    text = ok("logs", "--format", "csv", "--access-type", "write", dsn=filled.dsn())
    rows = ok_json("logs", "--access-type", "write", dsn=filled.dsn())
    as_text = [{k: "" if v is None else output.escaped(str(v)) for k, v in row.items()} for row in rows]
    assert list(csv.DictReader(io.StringIO(text, newline=""))) == as_text  # line breaks and all
    assert not set(text) & set("\x1b\r\u202e")


def test_a_table_cannot_move_the_cursor(filled: Db) -> None:
    text = ok("logs", "--access-type", "write", dsn=filled.dsn())
    assert len(text.splitlines()) == 4
    assert "\\x1b[31mred\\r\\n\\u202eevil" in text
    assert not set(text) & set("\x1b\r\u202e")


def test_no_entries(db: Db) -> None:
    assert ok("logs", dsn=db.dsn()) == "no entries\n"
    assert ok_json("logs", "--access-type", "write", dsn=db.dsn()) == []
    assert ok("logs", "--access-type", "write", "--format", "csv", dsn=db.dsn()).count("\n") == 1


def test_pages_through_thousands(db: Db) -> None:
    db.su.execute("select count(meshaudit.write_secret(n::text, '')) from generate_series(1, 2500) n")
    every = ok_json("logs", "--access-type", "write", "--limit", "0", dsn=db.dsn())
    ids = [row["id"] for row in every]
    assert len(ids) == len(set(ids)) == 2500
    assert [(r["timestamp"], r["id"]) for r in every] == sorted(
        [(r["timestamp"], r["id"]) for r in every], reverse=True
    )
    first = run("logs", "--access-type", "write", "--limit", "1200", "--json", dsn=db.dsn())
    assert [row["id"] for row in json.loads(first.stdout)] == ids[:1200]
    cursor = first.stderr.split("--after ")[1].split(",")[0]
    rest = run("logs", "--access-type", "write", "--limit", "1300", "--json", "--after", cursor, dsn=db.dsn())
    assert [row["id"] for row in json.loads(rest.stdout)] == ids[1200:]
    assert rest.stderr == ""

    # A reader that goes away is no error.
    shell = '"$@" logs --limit 0 | head -2 >/dev/null; echo "${PIPESTATUS[0]}"'
    done = subprocess.run(
        ["bash", "-c", shell, "bash", *PROGRAM],
        env=environment({"MESHAUDIT_DSN": db.dsn()}),
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("141\n", "")


# Where the DSN and --json come from.


def test_dsn_and_json_before_or_after_the_command(filled: Db) -> None:
    before = ok("--dsn", filled.dsn(), "--json", "logs", "--operation", "create")
    assert json.loads(before)
    assert before == ok("logs", "--operation", "create", "--dsn", filled.dsn(), "--json")
    wrong = {"MESHAUDIT_DSN": "host=nowhere.invalid"}
    assert before == ok("logs", "--operation", "create", "--dsn", filled.dsn(), "--json", env=wrong)


def test_libpq_variables(filled: Db) -> None:
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
    names |= {"password": "PGPASSWORD"}
    given = conninfo_to_dict(filled.dsn())
    env = {names[key]: str(value) for key, value in given.items() if key in names}
    assert json.loads(ok("logs", "--json", env=env))


# Errors.

NONSENSE = [
    (["logs", "--from", "noonish"], "--from: 'noonish' is not a time"),
    (["logs", "--from", "0001-01-01T00:00+14:00"], "is not a time"),
    (["logs", "--to", "2026-13-01"], "--to: '2026-13-01' is not a time"),
    (["logs", "--since", "5 parsecs"], "--since: '5 parsecs' is not a length of time"),
    (["logs", "--since", "999999w"], "--since: '999999w' is too long"),
    (["logs", "--since", "1h", "--from", "2026-01-01"], "--since and --from exclude each other"),
    (["logs", "--follow", "--limit", "5"], "--follow and --limit exclude each other"),
    (["logs", "--follow", "--to", "2020-01-01"], "--follow and --to exclude each other"),
    (["logs", "--follow", "--archive", "/nonexistent"], "--follow and --archive exclude each other"),
    (["logs", "--from", "2026-01-02", "--to", "2026-01-01"], "from_time must be before to_time"),
    (["logs", "--ip", "10.0.0.256"], "--ip: '10.0.0.256' is not an address"),
    (["logs", "--ip", "fe80::1%eth0"], "is not an address"),
    (["logs", "--after", "00"], "--after: '00' is not a cursor"),
    (["logs", "--after", "7" + "f" * 39], "is not a cursor"),
    (["logs", "--access-type", "look"], "access_type must be read or write"),
    (["logs", "--operation", "look"], "operation must be "),
    (["logs", "--outcome", "fine"], "outcome must be "),
    (["logs", "--format", "xml"], "--format: 'xml' is not a format"),
    (["logs", "--scope", "\udcff"], "--scope: not valid UTF-8"),
    (["verify", "--from", "noon"], "--from: 'noon' is not a time"),
    (["verify", "--checkpoint", "/nonexistent/file"], "/nonexistent/file"),
    (["verify", "--checkpoint", __file__], Path(__file__).name),
    (["checkpoint", "--output", "/nonexistent/file"], "cannot write /nonexistent/file: No such file"),
    (["checkpoint", "--output", "/dev/null", "--overwrite"], "/dev/null is not a file"),
    (["verify", "--archive", "/nonexistent", "--dsn", "", "--record"], "--record takes a database"),
    (["logs", "--json", "--format", "csv"], "--json and --format csv exclude each other"),
    (["logs", "--json", "--format", "table"], "--json and --format table exclude each other"),
    (["migrate", "--to", "nowhere"], 'no migration "nowhere"'),
    (["migrate", "--status", "--down"], "--status goes with neither"),
    (["migrate", "--destroy-audit-log"], "--destroy-audit-log without --down"),
    (["hold", "lift", "9" * 20, "--reason", "r"], f"no hold {'9' * 20}"),
    (["revoke-auditor", "nobody-we-know"], "nobody-we-know has no grant for all scopes"),
    (["grant-auditor", ""], "identity must be 1 to 256 characters"),
    (
        ["down", "--data", "/nonexistent"],
        "there is no server in /nonexistent (hint: meshaudit up --data /nonexistent makes one)",
    ),
    (["down", "--data", ""], "--data is empty"),
    (["up", "--data", ""], "--data is empty"),
]


@pytest.mark.parametrize(("args", "said"), NONSENSE, ids=[" ".join(args)[:40] for args, _ in NONSENSE])
def test_nonsense_is_told_in_one_line(filled: Db, args: list[str], said: str) -> None:
    assert said in fails(*args, dsn=filled.dsn())


def test_a_limit_that_no_log_reaches(filled: Db) -> None:
    asked = ("logs", "--operation", "create", "--limit")
    assert ok(*asked, "9" * 20, dsn=filled.dsn()) == ok(*asked, "0", dsn=filled.dsn())


@pytest.mark.parametrize("command", ["logs", "verify", "migrate"])
def test_unreachable(command: str) -> None:
    line = fails(command, dsn="postgresql://127.0.0.1:1/postgres")
    assert "port 1 failed: Connection refused" in line
    assert "MESHAUDIT_DSN" in line


def test_a_dsn_that_is_none() -> None:
    assert "a DSN looks like" in fails("--dsn", "nonsense", "logs")


def test_no_such_database(filled: Db) -> None:
    missing = make_conninfo(filled.dsn(), dbname="no_such_database")
    assert '"no_such_database" does not exist' in fails("logs", dsn=missing)


@pytest.mark.parametrize("command", ["logs", "verify", "checkpoint", "status"])
def test_not_migrated(empty_db: Db, command: str) -> None:
    assert "run: meshaudit migrate" in fails(command, dsn=empty_db.dsn())


def test_a_newer_schema(db: Db) -> None:
    db.su.execute(
        "create or replace function meshaudit.schema_version() returns text"
        " language sql stable as $$ select 'from_the_future' $$"
    )
    for command in ("logs", "verify", "status", "migrate"):
        line = fails(command, dsn=db.dsn())
        assert '"from_the_future", is newer than this program' in line
        assert "upgrade the meshaudit package" in line


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (["logs"], "grant_auditor"),
        (["verify"], "auditor of all scopes"),
        (["checkpoint"], "auditor of all scopes"),
        (["status"], "meshaudit_operator"),
        (["maintain"], "meshaudit_operator"),
        (["grant-auditor", "x"], "installed meshaudit"),
    ],
)
def test_no_permission(filled: Db, command: list[str], hint: str) -> None:
    nobody = filled.role("nobody")
    line = fails(*command, dsn=filled.dsn(nobody))
    assert "permission denied" in line
    assert hint in line


def test_a_full_disk_is_no_success(filled: Db) -> None:
    with Path("/dev/full").open("w") as full:
        for command in (["logs"], ["checkpoint"], ["verify", "--json"]):
            done = subprocess.run(
                [*PROGRAM, *command],
                env=environment({"MESHAUDIT_DSN": filled.dsn()}),
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert done.returncode == 2
            assert done.stderr.startswith("error: No space left on device (hint: ")
            assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["logs", "verify"])
def test_ctrl_c(db: Db, command: str) -> None:
    with db.su.transaction():
        db.su.execute("lock table meshaudit_private.ledger in access exclusive mode")
        with subprocess.Popen(
            [*PROGRAM, command],
            env=environment({"MESHAUDIT_DSN": db.dsn()}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            wait_until(db.waiting, timeout=30)
            process.send_signal(signal.SIGINT)
            try:
                out, err = process.communicate(timeout=20)
            finally:
                process.kill()
    assert (process.returncode, out, err) == (130, "", "")


# verify and checkpoint: exit codes. What is found is test_verify's matter.


def _alter(db: Db, change: str) -> None:
    db.su.execute("alter table meshaudit_private.ledger disable trigger append_only")
    db.su.execute(change.encode())
    db.su.execute("alter table meshaudit_private.ledger enable always trigger append_only")


def test_verify_exit_codes_and_words(db: Db, tmp_path: Path) -> None:
    db.su.execute("select meshaudit.write_secret(n::text, '') from generate_series(1, 5) n")
    kept = tmp_path / "checkpoint.json"
    ok("checkpoint", "--output", str(kept), dsn=db.dsn())
    assert json.loads(kept.read_text())["entries"] == 5
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.json"]
    assert json.loads(ok("checkpoint", dsn=db.dsn()))["lanes"] == json.loads(kept.read_text())["lanes"]
    assert f"{kept} exists" in fails("checkpoint", "--output", str(kept), dsn=db.dsn())
    ok("checkpoint", "--output", str(kept), "--overwrite", dsn=db.dsn())

    assert ok("verify", dsn=db.dsn()).startswith("intact: 5 entries")
    assert "of the checkpoint's 5 entries none has gone or changed" in ok(
        "verify", "--checkpoint", str(kept), dsn=db.dsn()
    )
    found = ok_json("verify", "--from", "2001-01-01", "--to", "2001-01-02", dsn=db.dsn())
    assert found == {"intact": True, "entries": 0, "lanes": 1, "problems": []}

    _alter(db, "update meshaudit_private.ledger set user_identity = 'mallory' where id in (2, 4)")
    row = db.su.execute("select lane, seq from meshaudit.audit_logs where id = 2").fetchone()
    assert row is not None
    done = run("verify", dsn=db.dsn())
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"altered: lane {row[0]}, seq {row[1]}, id 2: edited",
        "2 problems in 5 entries",
    ]
    done = run("verify", "--json", dsn=db.dsn())
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert not found["intact"]
    where = {"lane": row[0], "seq": row[1], "id": 2}
    assert found["problems"][0] == where | {"problem": "edited", "found_by": "chain"}


def test_a_cut_tail_shows_against_a_checkpoint(db: Db, tmp_path: Path) -> None:
    db.su.execute("select meshaudit.write_secret(n::text, '') from generate_series(1, 3) n")
    kept = tmp_path / "checkpoint.json"
    kept.write_text(ok("checkpoint", dsn=db.dsn()))
    _alter(db, "delete from meshaudit_private.ledger")
    db.su.execute("delete from meshaudit_private.lane_heads")
    assert run("verify", dsn=db.dsn()).returncode == 0
    done = run("verify", "--checkpoint", str(kept), dsn=db.dsn())
    assert done.returncode == 1
    assert "deleted (entries 1 to 3) (contradicts the checkpoint)" in done.stdout
