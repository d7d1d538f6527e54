"""An archived partition comes back, whole and once."""

import json
from pathlib import Path

import psycopg
import pyarrow.parquet as pq
import pytest

from meshaudit.archive.restore import _rows
from tests.archive.history import partitions
from tests.archive.support import (
    MONTHS,
    SOON,
    everything,
    found,
)
from tests.cli_support import fails, ok
from tests.support import Db


def test_restored(past: Db, tmp_path: Path) -> None:
    before = everything(past)
    place = str(tmp_path)
    name = partitions(past.su, "ready")[1]
    ok("archive", "--to", place, "--before", SOON, dsn=past.dsn())
    operator = past.role("op", "meshaudit_operator")
    ok("restore", place, "--partition", name, dsn=past.dsn(operator))
    assert found(past) == []
    now = everything(past)
    assert [row for row in now if row in before] == [row for row in before if row in now]
    table = pq.read_table(tmp_path / f"{name}.parquet")
    assert len([row for row in now if row in before]) == len(table)
    assert "is retired" in fails("restore", place, "--partition", name, dsn=past.dsn(operator))
    last = past.su.execute(
        "select db_user, operation, secret_id from meshaudit.audit_logs order by id"
    ).fetchall()
    assert last[-1][:2] == (operator, "create")
    assert last[-1][2].startswith(f"{name} ")
    # verified beside the archive, and retired again to the same one
    ok("verify", "--archive", place, dsn=past.dsn())
    ok("archive", "--to", place, "--before", SOON, dsn=past.dsn())
    assert found(past) == []
    assert len(partitions(past.su, "retired")) == MONTHS
    ok("verify", "--archive", place, dsn=past.dsn())


def test_only_what_was_retired_comes_back(past: Db, tmp_path: Path) -> None:
    name = partitions(past.su, "ready")[0]
    ok("archive", "--to", str(tmp_path), "--before", SOON, dsn=past.dsn())
    rows = next(_rows(tmp_path / f"{name}.parquet"))
    operator = past.connect(past.role("op", "meshaudit_operator"), autocommit=False)
    for brought in (rows[1:], [*rows, rows[0]], [{**rows[0], "scope": "x"}, *rows[1:]], []):
        with pytest.raises(psycopg.Error) as caught:  # noqa: PT012 (an entry that is there twice is refused at once)
            operator.execute("select meshaudit.restore_entries(%s)", [json.dumps(brought)])
            operator.execute("select meshaudit.restore_partition(%s)", [name])
        assert caught.value.sqlstate == "MA005"
        operator.rollback()
    for garbage in ('{"a": 1}', "1", '[{"lane": "x"}]'):
        with pytest.raises(psycopg.Error) as caught:
            operator.execute("select meshaudit.restore_entries(%s)", [garbage])
        assert caught.value.sqlstate == "MA005"
        operator.rollback()
    path = tmp_path / f"{name}.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    assert "bytes instead of" in fails("restore", str(tmp_path), "--partition", name, dsn=past.dsn())
    assert found(past) == []
