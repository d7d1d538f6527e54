"""Damage to an archive, a sample of all there is: each must be found, and the damaged file named.

`python -m tests.archive.damage [COUNT]` does a thousand; the fast tests do a few dozen.
"""

import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from meshaudit import archive_verify
from meshaudit.server import Server

KINDS = ("flip", "flip", "flip", "flip", "truncate", "extend", "remove", "swap", "rename", "empty")


def damage(place: Path, dice: random.Random) -> tuple[str, set[str]]:
    """Do one; returns what was done, and the names of which one must be told."""
    files = sorted(path for path in place.iterdir() if path.suffix in (".parquet", ".json"))
    path = dice.choice(files)
    data = bytearray(path.read_bytes())
    match kind := dice.choice(KINDS):
        case "flip":
            at = dice.randrange(len(data))
            data[at] ^= dice.randrange(1, 256)
            path.write_bytes(data)
        case "truncate":
            path.write_bytes(data[: dice.randrange(1, len(data))])
        case "extend":
            path.write_bytes(data + dice.choice((b"\n", b"\0", bytes(data[-100:]))))
        case "empty":
            path.write_bytes(b"")
        case "remove":
            path.unlink()
        case "swap":
            other = dice.choice([f for f in files if f != path and f.suffix == path.suffix])
            path.write_bytes(other.read_bytes())
            other.write_bytes(data)
            return f"swap {path.name} and {other.name}", {path.name}
        case "rename":
            path.rename(path.with_name("ledger_1999_01" + "".join(path.suffixes)))
    return f"{kind} {path.name}", {path.name, path.name.replace(".manifest.json", ".parquet")}


def unfound(
    place: Path, count: int, seed: int, scratch: Path, there: Callable[[Path], Path | str] = lambda copy: copy
) -> Iterator[str]:
    """Damages of a sample that verify() does not tell, or does not name. `there`: takes a copy to where to look."""
    dice = random.Random(seed)
    for number in range(count):
        copy = scratch / str(number)
        shutil.copytree(place, copy)
        done, names = damage(copy, dice)
        faults = archive_verify.verify(there(copy), workers=1).faults
        if not any(fault.file in names for fault in faults):
            yield f"{done}: {faults}"
        shutil.rmtree(copy)


def main() -> None:
    from tests.archive.history import load
    from tests.cli_support import ok

    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with Server.temporary() as server, tempfile.TemporaryDirectory() as scratch:
        import psycopg

        ok("migrate", dsn=server.dsn())
        with psycopg.connect(server.dsn(), autocommit=True) as su:
            load(su, months=4, rows=400)
        place = Path(scratch) / "archive"
        ok("archive", "--to", str(place), "--before", "2999-01-01", dsn=server.dsn())
        assert not archive_verify.verify(place).faults
        missed = list(unfound(place, count, 1, Path(scratch)))
    print(f"{count} damages, {len(missed)} not found", *missed, sep="\n")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
