"""Alerts: each rule fires where it should and nowhere else; once a window; seen by whom it concerns."""

from typing import Any

import psycopg
import pytest

from tests.journal_support import Conn, Journal, one
from tests.support import Db
from tests.test_feed import feed, write


def quiet(db: Db) -> None:
    """No rule but those that a test turns on."""
    for (rule,) in db.su.execute("select rule from meshaudit.alert_rules").fetchall():
        db.su.execute("select meshaudit.set_alert_rule(%s, enabled => false)", [rule])
    feed(db.su)


def rule(db: Db, name: str, **values: Any) -> None:
    given = "".join(f", {key} => %({key})s" for key in values)
    db.su.execute(
        f"select meshaudit.set_alert_rule(%(rule)s, enabled => true{given})".encode(), {"rule": name} | values
    )


def alerts(conn: Conn) -> list[tuple[Any, ...]]:
    return conn.execute("select rule, scope, count from meshaudit.alerts order by alert_id").fetchall()


@pytest.fixture
def calm(db: Db) -> Db:
    quiet(db)
    return db


def read(conn: Conn, secret: Any, times: int = 1) -> None:
    for _ in range(times):
        one(conn, "select meshaudit.read_secret(%s)", secret)


def test_reads(calm: Db) -> None:
    rule(calm, "reads", threshold=5, period="1 day")
    secret = write(calm.su, "k", "a")
    other = calm.connect(calm.role("other", "meshaudit_client"))
    read(calm.su, secret, 4)
    read(other, secret, 4)
    feed(calm.su)
    assert alerts(calm.su) == []
    read(calm.su, secret)
    feed(calm.su)
    assert alerts(calm.su) == [("reads", "a", 5)]
    read(calm.su, secret, 3)
    feed(calm.su)
    assert alerts(calm.su) == [("reads", "a", 8)]
    event = one(calm.su, "select alert from meshaudit.audit_feed where kind = 'alert'")
    assert event["rule"] == "reads"
    assert event["user_identity"] == calm.pg.superuser


SEEN = "select scope, count, message, last_at, entry_id, ip_address from meshaudit.alerts order by alert_id"


@pytest.mark.parametrize("first", ["a", "b"])
def test_what_an_auditor_of_one_scope_sees_is_of_that_scope(calm: Db, first: str) -> None:
    """Whatever an identity does in other scopes, before, at the same time or later."""
    rule(calm, "reads", threshold=5, period="1 day")
    auditor = calm.connect(calm.role("auditor"))
    calm.su.execute("select meshaudit.grant_auditor(%s, 'a')", [auditor.info.user])
    secrets = {scope: write(calm.su, "k", scope) for scope in "abc"}
    other = "b" if first == "a" else "a"
    read(calm.su, secrets[first], 6)
    feed(calm.su)
    before = auditor.execute(SEEN.encode()).fetchall()
    assert [row[:3] for row in before] == ([("a", 6, "6 reads within 1 day")] if first == "a" else [])
    read(calm.su, secrets[other], 7)
    read(calm.su, secrets["c"], 2)
    feed(calm.su)
    seen = auditor.execute(SEEN.encode()).fetchall()
    if first == "a":
        assert seen == before
    else:
        assert [row[:3] for row in seen] == [("a", 7, "7 reads within 1 day")]
    # the whole: each scope that reaches it by itself, and no total besides
    assert sorted(alerts(calm.su)) == sorted([("reads", first, 6), ("reads", other, 7)])


def test_a_threshold_that_only_all_scopes_together_reach(calm: Db) -> None:
    rule(calm, "reads", threshold=5, period="1 day")
    auditor = calm.connect(calm.role("auditor"))
    calm.su.execute("select meshaudit.grant_auditor(%s, 'a')", [auditor.info.user])
    # '*' is a scope like any other to the vault, but only who sees everything sees it
    secrets = {scope: write(calm.su, "k", scope) for scope in ("a", "b", "*")}
    read(calm.su, secrets["a"], 2)
    read(calm.su, secrets["b"], 2)
    feed(calm.su)
    assert alerts(calm.su) == []
    read(calm.su, secrets["*"], 1)
    feed(calm.su)
    assert alerts(calm.su) == [("reads", "*", 5)]
    assert auditor.execute(SEEN.encode()).fetchall() == []
    # once raised, the total stays one, also when a scope has got there by itself
    read(calm.su, secrets["a"], 4)
    feed(calm.su)
    assert alerts(calm.su) == [("reads", "*", 9), ("reads", "a", 6)]
    assert [row[:2] for row in auditor.execute(SEEN.encode()).fetchall()] == [("a", 6)]
    read(calm.su, secrets["*"], 5)
    feed(calm.su)
    assert alerts(calm.su) == [("reads", "*", 14), ("reads", "a", 6), ("reads", "*", 6)]


def test_names_and_scopes_are_told_apart(calm: Db) -> None:
    """Identity "eve a" in scope "b" is not identity "eve" in scope "a b"."""
    rule(calm, "new_secret", learns="0")
    role = calm.role("authenticator", "meshaudit_client")
    gateway = calm.connect(role)
    calm.su.execute("select meshaudit.set_setting('gateway_roles', %s)", [role])
    for subject, scope in (("eve", "a b"), ("eve a", "b")):
        gateway.execute("select set_config('request.jwt.claims', %s, false)", [f'{{"sub": "{subject}"}}'])
        write(gateway, "k", scope)
    feed(calm.su)
    assert sorted(alerts(calm.su)) == [("new_secret", "a b", 1), ("new_secret", "b", 1)]


def test_denials_and_rolled_back(db: Db) -> None:
    journal = Journal(db)
    quiet(db)
    rule(db, "denials", threshold=3, period="1 day")
    rule(db, "rolled_back")
    client = journal.client()
    for attempt in range(3):
        with pytest.raises(psycopg.Error, match="no such secret"):
            one(client, "select meshaudit.read_secret(gen_random_uuid())")
        journal.seal()
        assert len(alerts(db.su)) == (attempt == 2)
    client.execute("begin")
    read(client, journal.secret)
    client.execute("rollback")
    journal.seal()
    assert [row[0] for row in alerts(db.su)] == ["denials", "rolled_back"]


def test_reading_the_log_reads_no_secret(db: Db) -> None:
    journal = Journal(db)
    quiet(db)
    rule(db, "rolled_back")
    auditor = db.connect(db.role("auditor"))
    db.su.execute("select meshaudit.grant_auditor(%s)", [auditor.info.user])
    auditor.execute("begin")
    auditor.execute("select * from meshaudit.audit_logs")
    auditor.execute("select * from meshaudit.search_audit_logs()")
    auditor.execute("rollback")
    journal.seal()
    undone = "select distinct secret_table from meshaudit.audit_feed where outcome = 'rolled_back'"
    assert db.su.execute(undone).fetchall() == [("meshaudit.audit_logs",)]
    assert alerts(db.su) == []


def test_new_secret_and_learning(calm: Db) -> None:
    rule(calm, "new_secret")
    first = write(calm.su, "first")
    feed(calm.su)
    assert alerts(calm.su) == []  # it learns
    rule(calm, "new_secret", learns="0")
    read(calm.su, first)
    feed(calm.su)
    assert alerts(calm.su) == []
    write(calm.su, "second")
    feed(calm.su)
    assert alerts(calm.su) == [("new_secret", "", 1)]


def test_new_network(calm: Db) -> None:
    rule(calm, "new_network", learns="0")
    role = calm.role("authenticator")
    gateway = calm.connect(role)
    calm.su.execute("select meshaudit.set_setting('gateway_roles', %s)", [role])
    calm.pg.run(f"grant meshaudit_client to {role}")
    secret = write(calm.su)
    gateway.execute("""select set_config('request.jwt.claims', '{"sub": "eve"}', false)""")
    fired = []
    for address in (
        "10.1.2.3",
        "10.1.2.99",
        "10.1.3.1",
        "2001:db8:1:2::1",
        "2001:db8:1:3::1",
        "2001:db8:2::1",
    ):
        headers = f'{{"cf-connecting-ip": "{address}"}}'
        gateway.execute("select set_config('request.headers', %s, false)", [headers])
        before = one(
            calm.su, "select coalesce(sum(count), 0) from meshaudit.alerts where user_identity = 'eve'"
        )
        read(gateway, secret)
        feed(calm.su)
        after = one(
            calm.su, "select coalesce(sum(count), 0) from meshaudit.alerts where user_identity = 'eve'"
        )
        fired.append(after > before)
    assert fired == [True, False, True, True, False, True]


def test_hours(calm: Db) -> None:
    zone = "Asia/Kathmandu"
    local = one(calm.su, "select (now() at time zone %s)", zone)
    write(calm.su, "before")
    feed(calm.su)
    rule(calm, "hours", time_zone=zone, opens="00:00", closes="24:00", days=[1, 2, 3, 4, 5, 6, 7])
    write(calm.su, "inside")
    feed(calm.su)
    assert alerts(calm.su) == []
    rule(calm, "hours", days=[local.isoweekday() % 7 + 3 if local.isoweekday() % 7 + 3 <= 7 else 1])
    write(calm.su, "outside")
    feed(calm.su)
    assert [row[0] for row in alerts(calm.su)] == ["hours"]


def test_gap(db: Db) -> None:
    journal = Journal(db)
    quiet(db)
    rule(db, "gap")
    db.su.execute("select pg_drop_replication_slot(slot_name) from meshaudit_private.journal")
    journal.operator.execute("select meshaudit.arm_journal()")
    journal.seal()
    assert alerts(db.su) == [("gap", "*", 1)]


def test_the_system(calm: Db) -> None:
    def check() -> list[str]:
        calm.su.execute("update meshaudit_private.alert_state set checked_at = '-infinity'")
        feed(calm.su)
        return [row[0] for row in alerts(calm.su)]

    for name in ("verification", "partitions", "lag"):
        rule(calm, name)
    feed(calm.su)
    assert check() == []
    one(calm.su, "select meshaudit.record_verification(2)")
    assert check() == ["verification"]
    assert check() == ["verification"]
    rule(calm, "partitions", threshold=100)
    assert check() == ["verification", "partitions"]
    calm.su.execute("update meshaudit_private.feed_state set ran_at = now() - interval '10 minutes'")
    write(calm.su)
    assert check() == ["verification", "partitions", "lag"]


def test_scopes_and_acknowledging(calm: Db) -> None:
    rule(calm, "new_secret", learns="0")
    auditors = {scope: calm.connect(calm.role("auditor", "meshaudit_auditor")) for scope in ("a", "b")}
    for scope, conn in auditors.items():
        calm.su.execute("select meshaudit.grant_auditor(%s, %s)", [conn.info.user, scope])
    write(calm.su, "k", "a")
    feed(calm.su)
    seen = "select alert_id, acknowledged_by from meshaudit.alerts"
    assert auditors["a"].execute(seen.encode()).fetchall() == [(1, None)]
    assert auditors["b"].execute(seen.encode()).fetchall() == []
    assert one(auditors["b"], "select meshaudit.acknowledge_alert(1)") is False
    assert one(auditors["a"], "select meshaudit.acknowledge_alert(1, 'mine')") is True
    assert auditors["a"].execute(seen.encode()).fetchall() == [(1, auditors["a"].info.user)]
    for verb in ("update meshaudit_private.alerts set rule = ''", "delete from meshaudit_private.alerts"):
        with pytest.raises(psycopg.Error) as refused:
            calm.su.execute(verb.encode())
        assert refused.value.sqlstate == "MA003"


def test_rules_are_recorded_and_checked(calm: Db) -> None:
    rule(calm, "reads", threshold=7)
    last = "select secret_table, secret_id from meshaudit.audit_logs order by id desc limit 1"
    assert calm.su.execute(last.encode()).fetchall() == [("meshaudit.alert_rules", "reads")]
    for name, values in (
        ("nothing", {}),
        ("reads", {"threshold": 0}),
        ("reads", {"learns": "1 day"}),
        ("hours", {"time_zone": "Nowhere/Land"}),
        ("hours", {"days": [8]}),
        ("reads", {"period": "1 second"}),
        # no clock knows how long these are
        ("reads", {"period": "1 month"}),
        ("rolled_back", {"period": "1 mon -20 days"}),
        ("lag", {"period": "1 year -345 days"}),
        ("lag", {"period": "-1 mon 40 days"}),
    ):
        with pytest.raises(psycopg.Error) as refused:
            rule(calm, name, **values)
        assert refused.value.sqlstate == "MA005", (name, values)
        assert refused.value.diag.message_hint
    rule(calm, "rolled_back", period="31 days")


def status(db: Db, check: str = "alerts") -> tuple[bool, str]:
    query = 'select ok, detail from meshaudit.status() where "check" = %s'
    ((fine, detail),) = db.su.execute(query, [check]).fetchall()
    return fine, detail


def later(db: Db) -> None:
    """Ten seconds."""
    db.su.execute("update meshaudit_private.alert_state set checked_at = '-infinity'")
    feed(db.su)


@pytest.fixture
def broken(calm: Db) -> Db:
    """Rule hours fails, as it would with a period that set_alert_rule() refuses."""
    for name in ("reads", "hours", "new_secret"):
        rule(calm, name)
    rule(calm, "reads", threshold=5, period="1 day")
    rule(calm, "new_secret", learns="0")
    rule(calm, "hours", days=[])
    calm.su.execute("alter table meshaudit_private.alert_rules drop constraint alert_rules_period_check")
    calm.su.execute("update meshaudit_private.alert_rules set period = '1 mon' where rule = 'hours'")
    return calm


def test_a_rule_that_fails_holds_up_no_other(broken: Db) -> None:
    rule(broken, "gap")  # of the same kind
    secret = write(broken.su, "k", "a")
    feed(broken.su)
    assert alerts(broken.su) == [("new_secret", "a", 1)]
    assert status(broken, "feed")[0]
    fine, detail = status(broken)
    assert not fine
    assert "rule hours fails: timestamps cannot be binned" in detail
    read(broken.su, secret, 5)
    feed(broken.su)
    assert alerts(broken.su) == [("new_secret", "a", 1), ("reads", "a", 5)]
    later(broken)
    assert len(alerts(broken.su)) == 2
    # nothing that came meanwhile is lost, or told twice
    rule(broken, "hours", period="1 day")
    later(broken)
    assert alerts(broken.su) == [("new_secret", "a", 1), ("reads", "a", 5), ("hours", "a", 6)]
    assert status(broken) == (True, "no delivery is stuck")
    write(broken.su, "k", "a")
    feed(broken.su)
    assert alerts(broken.su)[2:] == [("hours", "a", 7)]


def test_a_rule_that_failed_starts_anew_when_it_is_turned_off(broken: Db) -> None:
    write(broken.su, "k", "a")
    feed(broken.su)
    broken.su.execute("select meshaudit.set_alert_rule('hours', enabled => false)")
    assert status(broken)[0]
    rule(broken, "hours", period="1 day")
    later(broken)
    assert [row[0] for row in alerts(broken.su)] == ["new_secret"]


def test_what_has_left_the_feed_is_not_looked_for(broken: Db) -> None:
    write(broken.su, "k", "a")
    feed(broken.su)
    rule(broken, "hours", period="1 day")
    broken.su.execute("update meshaudit_private.alert_rules set behind = -90000 where rule = 'hours'")
    later(broken)
    assert ("hours", "a", 1) in alerts(broken.su)


def test_rules_of_the_system_fail_alone(calm: Db) -> None:
    for name in ("verification", "partitions", "lag"):
        rule(calm, name)
    rule(calm, "partitions", threshold=100)
    calm.su.execute("alter table meshaudit_private.alert_rules drop constraint alert_rules_period_check")
    calm.su.execute("update meshaudit_private.alert_rules set period = '1 mon' where rule = 'partitions'")
    one(calm.su, "select meshaudit.record_verification(2)")
    calm.su.execute("update meshaudit_private.feed_state set ran_at = now() - interval '10 minutes'")
    write(calm.su)
    later(calm)
    assert [row[0] for row in alerts(calm.su)] == ["lag", "verification"]
    assert "rule partitions fails" in status(calm)[1]
    later(calm)
    rule(calm, "partitions", period="1 day")
    later(calm)
    assert [row[0] for row in alerts(calm.su)] == ["lag", "verification", "partitions"]
    assert status(calm)[0]


def test_rules_that_fail_keep_nothing_out(calm: Db) -> None:
    for name in ("reads", "new_secret"):
        rule(calm, name, **({"learns": "0"} if name == "new_secret" else {}))
    calm.su.execute("alter table meshaudit_private.alert_counts rename to lost")
    write(calm.su)
    later(calm)
    assert [row[0] for row in alerts(calm.su)] == ["new_secret"]
    assert "rule reads fails" in status(calm)[1]
    assert "forgetting fails" in status(calm)[1]
    calm.su.execute("alter table meshaudit_private.lost rename to alert_counts")
    later(calm)
    assert status(calm)[0]


def test_a_test_alert(any_db: Db) -> None:
    operator = any_db.connect(any_db.role("operator", "meshaudit_operator"))
    operator.execute("listen meshaudit_alert")
    number = one(operator, "select meshaudit.test_alert()")
    assert [n.payload for n in operator.notifies(timeout=0.5)] == [str(number)]
    assert alerts(any_db.su)[-1] == ("test", "*", 1)
