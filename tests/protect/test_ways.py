"""Every way to a value leaves an entry, and none past the view gives one."""

import psycopg
import pytest
from psycopg import errors as pg
from psycopg import sql

from tests.protect.support import ID1, ID2, App

ATTACKS = (
    "select value from meshaudit_protected.secrets",
    "select s from meshaudit_protected.secrets s",
    "copy meshaudit_protected.secrets to stdout",
    "update meshaudit_protected.secrets set key = value::text",
    "update meshaudit_protected.secrets set key = key returning value",
    "delete from meshaudit_protected.secrets returning *",
    "insert into meshaudit_protected.secrets (id, project_id, key, value) values ('{id}', 1, 'q', 'v')"
    " on conflict (id) do update set key = secrets.value::text",
    "select meshaudit_private.reveal_1_4('\\x00', '{other}', 1, '1', '(0,1)', 'x')",
    "create trigger spy before update on meshaudit_protected.secrets for each row execute function touch()",
    "create trigger spy instead of update on secrets for each row execute function touch()",
    "alter table meshaudit_protected.secrets add check (value <> 'x')",
    "set session_replication_role = replica",
    "truncate meshaudit_protected.secrets",
    "create table fk (id uuid references meshaudit_protected.secrets (id))",
    "select most_common_vals, histogram_bounds from pg_stats where tablename = 'secrets' and attname = 'value'",
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_on_the_table_itself(protected: App, attack: str) -> None:
    protected.db.su.execute("analyze meshaudit_protected.secrets")
    protected.db.su.execute("grant create on schema public to public")
    text = attack.format(id=ID2, other=ID1)
    c = protected.conn
    if "pg_stats" in text:
        assert c.execute(text.encode()).fetchall() == []
        return
    with pytest.raises(psycopg.Error) as caught:
        c.execute(text.encode())
    assert caught.value.sqlstate in ("42501", "42830", "2BP01")
    assert "secret" not in str(caught.value).replace("secrets", "")
    assert not [e for e in protected.entries() if e[1] == ID1]


WAYS = (
    ("select value from secrets where id = '{id}'", 1),
    ("select key from secrets where value = 'secret2' and id = '{id}'", 1),
    ("select key from secrets where id = '{id}' order by value", 1),
    ("select max(value::text) from secrets where id = '{id}'", 1),
    ("explain analyze select value from secrets where id = '{id}'", 1),
    ("do $$ declare v bytea; begin select value into v from secrets where id = '{id}'; end $$", 1),
    ("update secrets set key = convert_from(value, 'UTF8') where id = '{id}' returning key", 2),
    ("with t as (delete from secrets where id = '{id}' returning *) select value from t", 2),
    ("copy (select value from secrets where id = '{id}') to stdout", 1),
    ("begin; declare c cursor with hold for select value from secrets where id = '{id}'; commit; fetch c", 1),
    ("prepare p as select value from secrets where id = '{id}'; execute p", 1),
    ("create temp view spy as select value from secrets where id = '{id}'; select * from spy", 1),
    ("create temp table spy as select value from secrets where id = '{id}'", 1),
    ("set row_security = on; set enable_indexscan = off; select s::text from secrets s where id = '{id}'", 1),
    (
        "select meshaudit_set from (select set_config('meshaudit.revealed', 'x', false) as meshaudit_set) x, secrets where id = '{id}' and value is not null",
        1,
    ),
)


@pytest.mark.parametrize(("way", "expected"), WAYS)
def test_every_way_to_a_value_leaves_an_entry(protected: App, way: str, expected: int) -> None:
    protected.db.su.execute(
        sql.SQL("grant create, temp on database {} to public").format(sql.Identifier(protected.db.name))
    )
    with protected.conn.cursor() as cursor:
        text = way.format(id=ID2)
        if text.startswith("copy"):
            with cursor.copy(text.encode()) as copy:
                assert b"736563726574" in b"".join(bytes(b) for b in copy)
        else:
            for statement in text.split("; ") if not text.startswith("do") else [text]:
                cursor.execute(statement.encode())
    entries = protected.entries()
    assert len(entries) == expected
    assert {i for _, i in entries} == {ID2}


def test_prepared_before_and_executed_after(app: App) -> None:
    app.conn.execute("prepare p as select value from secrets where id = '%s'" % ID2)  # noqa: UP031
    app.conn.execute("execute p")
    app.protect()
    app.entries()
    assert app.conn.execute("execute p").fetchone() == (b"secret2",)
    assert app.entries() == [("read", ID2)]


def test_errors_do_not_print_the_value(protected: App) -> None:
    protected.owner.execute("alter table meshaudit_protected.secrets disable row level security")
    with pytest.raises(pg.CheckViolation) as caught:
        protected.conn.execute("update secrets set key = 'bad' where id = %s", [ID2])
    assert "736563726574" not in str(caught.value)
