"""Build dist/: the wheel, the sdist, and meshaudit.sql, which psql installs by itself.

meshaudit.sql is the current state, whatever has been released; `meshaudit migrate` takes such a database on.
"""

import subprocess
import sys
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


def single_file() -> str:
    """The text of meshaudit.sql."""
    parts = [f"\n-- sql/{name}\n\n{text.strip()}\n" for name, text in schema.current_state()]
    return HEADER + "".join(parts) + "\ncommit;\n"


def main() -> None:
    out = ROOT / "dist"
    out.mkdir(exist_ok=True)
    (out / "meshaudit.sql").write_text(single_file(), "utf-8")
    subprocess.run([sys.executable, "-m", "build", "--outdir", out, ROOT], check=True)


if __name__ == "__main__":
    main()
