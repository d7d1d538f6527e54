"""What the tests of migrations share: comparable dumps of a database, and real sqitch."""

import difflib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from meshaudit.version import installed
from tests import servers
from tests.flavours import Templates
from tests.support import Db

ROOT = servers.ROOT
BOOKS = "meshaudit_migrations"
needs_sqitch = pytest.mark.skipif(shutil.which("sqitch") is None, reason="sqitch is not installed")
_references: dict[str, str] = {}


def reference(template: Templates, flavour: str) -> str:
    """The dump of a database built from sql/."""
    if flavour not in _references:
        db = template.clone(flavour)
        _references[flavour] = dump(db)
        db.drop()
    return _references[flavour]


def dump(db: Db) -> str:
    """Schema with owners, grants, policies, comments; who is in our roles; how much data there is."""
    text = run(
        *(servers.client("pg_dump"), "--schema-only", "-N", "sqitch", "-N", BOOKS),
        *("-d", db.dsn(db.pg.superuser)),
    )
    # pg_dump's psql guard has a new key every time.
    text = re.sub(r"(?m)^\\(un)?restrict .*\n", "", text)
    # 15.20 stamps each new column with a number, which only a pg_dump as new leaves out.
    text = re.sub(r"(?m)^ALTER .* SET \(pg_attver=\d+\);\n", "", text)
    members = db.su.execute(
        # ADMIN alone, which a role's maker has since 16, does not make anyone act as it
        "select count(*) from pg_auth_members m"
        " where m.member::regrole::text = %s and m.roleid::regrole::text = 'meshaudit_owner'"
        " and (to_jsonb(m) ->> 'inherit_option' is null or"
        "  'true' in (to_jsonb(m) ->> 'inherit_option', to_jsonb(m) ->> 'set_option'))",
        [db.installer],
    ).fetchone()
    return f"{text}-- installer acts as owner: {members}\n-- rows: {rows(db)}\n"


def assert_same(got: str, wanted: str) -> None:
    """As a short diff: the dumps are long."""
    lines = difflib.unified_diff(wanted.splitlines(), got.splitlines(), "wanted", "got", n=1, lineterm="")
    found = "\n".join(lines)
    assert found == "", found


def rows(db: Db) -> dict[str, str]:
    """Rows that the schema starts with, without what is new in each database."""
    if installed(db.su) is None:
        return {}
    queries = {
        "settings": "select to_jsonb(s) - '{ledger_id,installed_at,maintained_at,reading_key}'::text[]"
        " from meshaudit_private.settings s",
        "lanes": "select count(*), max(seq) from meshaudit_private.lane_heads",
        "ledger": "select count(*) from meshaudit_private.ledger",
    }
    return {what: str(db.su.execute(query).fetchall()) for what, query in queries.items()}


def run(*args: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """A program's stdout; its stderr is the failure's message."""
    done = subprocess.run(
        args, cwd=cwd, env=os.environ | (env or {}), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{args[0]} failed: {done.stdout}{done.stderr}")
    return done.stdout


def sqitch(db: Db, *args: str, options: str = "") -> str:
    """Real sqitch, as the database's installer."""
    given = conninfo_to_dict(db.dsn())
    keys = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD"}
    env = {keys[k]: str(v) for k, v in given.items() if k in keys} | {"PGOPTIONS": options}
    # Nobody's own configuration, and a name for its records.
    env |= {f"SQITCH_{k}_CONFIG": "/nonexistent" for k in ("SYSTEM", "USER")}
    env |= {"SQITCH_FULLNAME": "test", "SQITCH_EMAIL": "test@example.org"}
    command, *rest = args
    target = ("--target", f"db:pg:{db.name}", "--client", str(servers.client("psql")))
    return run("sqitch", command, *target, *rest, env=env)


def write_entry(db: Db) -> None:
    db.su.execute("select meshaudit.write_secret('key', 'value')")
