"""What `make dist` builds, installed by a role like Supabase's postgres."""

import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from pathlib import Path

import pglast
import psycopg
import pytest

import meshaudit
from scripts import dist

NOBODYS = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def bare(template):
    db = template.clone_empty("supabase_new")
    try:
        yield db
    finally:
        db.drop()


def _works(db):
    with db.connect() as conn:
        conn.execute("grant meshaudit_client to current_user")
        secret = conn.execute("select meshaudit.write_secret('k', '\\x01')").fetchone()[0]
        assert conn.execute("select meshaudit.read_secret(%s)", [secret]).fetchone() == (b"\x01",)
        assert conn.execute("select current_user = session_user").fetchone() == (True,)
    assert db.su.execute("select operation from meshaudit.audit_logs order by id").fetchall() == [
        ("create",),
        ("read",),
    ]


def test_supabases_cli_sends_it_statement_by_statement(bare):
    text = dist.supabase_migration()
    assert not any(line.startswith("\\") for line in text.splitlines())
    with psycopg.connect(bare.dsn(), autocommit=True) as conn:
        for statement in pglast.split(text):
            conn.execute(statement.encode())
    _works(bare)


def test_the_package_runs_in_a_transaction_of_its_caller(bare):
    with psycopg.connect(bare.dsn()) as conn:
        conn.execute(dist.body().encode())
    _works(bare)


def test_the_package_is_an_extension(bare):
    if bare.pg.version < 18:
        pytest.skip("before 18 an extension has to be in the server's own directory")
    # not pytest's directory: the server may be another user, and that one is closed to it
    with tempfile.TemporaryDirectory() as found:
        home = Path(found)
        home.chmod(0o755)
        dist.write_tle(home / "extension")
        bare.pg.run(f"alter database {bare.name} set extension_control_path = '{home}:$system'")
        with psycopg.connect(bare.dsn(), autocommit=True) as conn:
            conn.execute("create extension meshaudit")
        _works(bare)


def test_the_wheel_works_without_its_source(empty_db, tmp_path):
    """Built from the sdist, in a fresh venv; the dependencies are this one's."""
    built, home = tmp_path / "dist", tmp_path / "venv"
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", built, dist.ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        names = {n.split("/", 1)[-1] for n in packed.getnames()}
    assert {"sql/11_ledger.sql", "migrations/deploy/ledger.sql", "LICENSE", "README.md"} <= names
    assert not any(n.startswith((".cache", ".venv")) for n in names)

    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, capture_output=True)
    site = next((home / "lib").glob("python3*")) / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    def run(*args):
        done = subprocess.run(
            [home / "bin" / "meshaudit", *args], check=True, capture_output=True, text=True, cwd=tmp_path
        )
        return done.stdout

    assert meshaudit.__version__ in run("--version")
    where = [python, "-c", "import meshaudit; print(meshaudit.__file__)"]
    assert str(site) in subprocess.run(where, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    run("--dsn", empty_db.dsn(), "migrate")
    secret = empty_db.su.execute("select meshaudit.write_secret('k', 'v')").fetchone()[0]
    assert str(secret) in run("--dsn", empty_db.dsn(), "logs")
    assert empty_db.su.execute("select * from meshaudit.verify()").fetchall() == []
