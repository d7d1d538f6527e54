"""Build dist/: the wheel, the sdist, and the current state of sql/ in the forms that others install it in.

meshaudit.sql                                 for psql, alone; `meshaudit migrate` takes it on from there
supabase/migrations/<timestamp>_meshaudit.sql for the Supabase CLI, which splits it into statements
tle/                                          a package for database.dev: CREATE EXTENSION is the transaction
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import meshaudit
from meshaudit import schema

ROOT = Path(__file__).resolve().parent.parent

HEADER = f"""\
-- meshaudit {meshaudit.__version__}: psql -f meshaudit.sql
-- Built from sql/ by `make dist`; all of it or nothing gets installed.
\\set ON_ERROR_STOP on
begin;
"""


CONTROL = f"""\
default_version = '{meshaudit.__version__}'
comment = 'Tamper-evident audit log for secrets'
relocatable = false
superuser = false
"""


def body() -> str:
    """All of sql/, in order, without a transaction around it."""
    return "".join(f"\n-- sql/{name}\n\n{text.strip()}\n" for name, text in schema.current_state())


def single_file() -> str:
    """The text of meshaudit.sql."""
    return HEADER + body() + "\ncommit;\n"


def supabase_migration() -> str:
    """The same without psql's commands."""
    return f"-- meshaudit {meshaudit.__version__}, for supabase/migrations/\nbegin;\n{body()}\ncommit;\n"


def write_tle(folder: Path) -> None:
    """The package's two files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meshaudit.control").write_text(CONTROL, "utf-8")
    (folder / f"meshaudit--{meshaudit.__version__}.sql").write_text(body(), "utf-8")


def main() -> None:
    out = ROOT / "dist"
    out.mkdir(exist_ok=True)
    (out / "meshaudit.sql").write_text(single_file(), "utf-8")
    migrations = out / "supabase" / "migrations"
    migrations.mkdir(parents=True, exist_ok=True)
    for old in migrations.glob("*_meshaudit.sql"):
        old.unlink()
    # it has to sort behind the project's own
    built = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))
    name = f"{time.strftime('%Y%m%d%H%M%S', built)}_meshaudit.sql"
    (migrations / name).write_text(supabase_migration(), "utf-8")
    write_tle(out / "tle")
    subprocess.run([sys.executable, "-m", "build", "--outdir", out, ROOT], check=True)


if __name__ == "__main__":
    main()
