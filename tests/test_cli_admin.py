"""The commands that manage: status, maintain, auditors, migrate, up and down."""

import json
import shutil

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from meshaudit import cluster
from tests.cli_support import fails, ok, ok_json, run
from tests.support import Db


def test_status_maintain_and_auditors(db: Db) -> None:
    checks = {row["check"]: row for row in ok_json("status", dsn=db.dsn())}
    assert checks["append-only"]["ok"]
    assert "append-only" in ok("status", dsn=db.dsn())
    assert ok_json("maintain", dsn=db.dsn()) == {"done": "0 partitions made"}

    auditor = db.role("auditor")
    assert "database role" in ok("grant-auditor", auditor, "--scope", "red", dsn=db.dsn())
    assert "JWT subject" in ok("grant-auditor", "a-subject", dsn=db.dsn())
    db.su.execute("select meshaudit.write_secret('k', 'v', 'red'), meshaudit.write_secret('k', 'v', 'blue')")
    seen = ok_json("logs", dsn=db.dsn(auditor))
    assert {row["scope"] for row in seen} == {"red"}
    assert ok_json("revoke-auditor", auditor, "--scope", "red", dsn=db.dsn())["revoked"]
    hidden = run("logs", dsn=db.dsn(auditor))
    assert (hidden.returncode, hidden.stdout) == (0, "no entries\n")
    assert "only the scopes that you were granted" in hidden.stderr
    for command in ("verify", "checkpoint", "status"):
        assert "part of" in fails(command, dsn=db.dsn(auditor))


def test_alert_rules(db: Db) -> None:
    db.su.execute(f"alter database {db.name} set intervalstyle = 'iso_8601'".encode())
    rules = {row["rule"]: row for row in ok_json("alerts", "rules", dsn=db.dsn())}
    assert (rules["reads"]["period"], rules["reads"]["learns"]) == ("5 minutes", None)
    assert (rules["new_secret"]["period"], rules["new_secret"]["learns"]) == ("1 hour", "1 day")
    assert " 5 minutes " in ok("alerts", "rules", dsn=db.dsn())
    ok("alerts", "set", "new_secret", "--period", "1 day 90.5 seconds", "--learns", "0", dsn=db.dsn())
    changed = next(r for r in ok_json("alerts", "rules", dsn=db.dsn()) if r["rule"] == "new_secret")
    assert (changed["period"], changed["learns"]) == ("1 day 1 minute 30.5 seconds", "0 seconds")

    assert "nothing to change is given" in fails("alerts", "set", "reads", dsn=db.dsn())
    line = fails("alerts", "set", "bogus", "--on", dsn=db.dsn())
    assert "no alert rule 'bogus' (hint: meshaudit alerts rules" in line
    line = fails("alerts", "set", "reads", "--opens", "07:00", dsn=db.dsn())
    assert "the alert rule 'reads' takes no such value (hint: " in line


def test_migrate(empty_db: Db) -> None:
    dsn = empty_db.dsn()
    before = ok_json("migrate", "--status", dsn=dsn)
    assert not any(row["applied"] for row in before)
    names = [row["name"] for row in before]
    assert ok("migrate", dsn=dsn) == f"applied: {', '.join(names)}\n"
    assert ok("migrate", dsn=dsn) == "nothing to do: no migration applied\n"
    assert all(row["applied_at"].endswith("Z") for row in ok_json("migrate", "--status", dsn=dsn))
    ok("logs", dsn=dsn)
    empty_db.su.execute("select meshaudit.write_secret('k', 'v')")
    assert "--destroy-audit-log" in fails("migrate", "--down", dsn=dsn)
    taken = ok_json("migrate", "--down", "--destroy-audit-log", dsn=dsn)
    assert taken == {"taken_back": names[::-1]}
    assert "run: meshaudit migrate" in fails("logs", dsn=dsn)


def test_up_and_down() -> None:
    data = cluster.temporary_dir()
    try:
        started = run("up", "--data", str(data))
        assert started.returncode == 0, started.stderr
        dsn = started.stdout.strip()
        assert started.stdout == f"{dsn}\n"
        assert "started in" in started.stderr
        again = run("up", "--data", str(data))
        assert (again.returncode, again.stdout) == (0, started.stdout)
        assert "already running" in again.stderr
        ok("grant-auditor", "somebody", dsn=dsn)

        login = conninfo_to_dict(dsn)
        assert login["password"]
        # The server's own log must not have it either.
        assert not any(
            str(login["password"]) in path.read_text(errors="replace")
            for path in data.rglob("*")
            if path.is_file() and path.name != "server.json"
        )
        wrong = make_conninfo(dsn, password="wrong")
        line = fails("logs", dsn=wrong)
        assert "password authentication failed" in line
        assert "PGPASSWORD" in line

        assert json.loads(ok("down", "--data", str(data), "--json"))["stopped"]
        stopped = run("down", "--data", str(data))
        assert stopped.returncode == 0
        assert "not running" in stopped.stderr
        assert "Connection refused" in fails("logs", dsn=dsn)
        # A stray variable of libpq's must not lead elsewhere.
        restarted = ok("up", "--data", str(data), "--json", env={"PGHOSTADDR": "192.0.2.1"})
        assert json.loads(restarted) == {"dsn": dsn, "data": str(data), "started": True}
        assert [row["secret_id"] for row in ok_json("logs", dsn=dsn)] == ["somebody"]
    finally:
        run("down", "--data", str(data))
        shutil.rmtree(data)
