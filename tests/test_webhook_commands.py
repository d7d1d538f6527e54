"""meshaudit alerts: webhooks from the command line."""

import base64
import json

import pytest

from tests.cli_support import fails, ok, ok_json, run
from tests.support import Db
from tests.test_webhooks import Receiver, receiver

__all__ = ["receiver"]  # the fixture


def test_commands(db: Db, receiver: Receiver) -> None:
    dsn = db.dsn()
    made = ok_json("alerts", "webhook-add", receiver.url, dsn=dsn)
    receiver.secret = made["secret"]
    assert ok("alerts", dsn=dsn) == "no alerts\n"
    assert ok_json("alerts", "test", dsn=dsn) == {"alert_id": 1}
    assert ok("alerts", "send", dsn=dsn) == "sent: 1, failed: 0\n"
    assert len(receiver.messages) == 1
    assert ok("alerts", "ack", "1", "--note", "seen", dsn=dsn) == "acknowledged: 1\n"
    (alert,) = ok_json("alerts", dsn=dsn)
    assert (alert["rule"], alert["note"]) == ("test", "seen")
    assert ok_json("alerts", "--open", dsn=dsn) == []
    ok("alerts", "set", "reads", "--threshold", "7", "--period", "1 hour", dsn=dsn)
    rules = {rule["rule"]: rule for rule in ok_json("alerts", "rules", dsn=dsn)}
    assert (rules["reads"]["threshold"], rules["reads"]["period"]) == (7, "1 hour")
    (hook,) = json.loads(ok("alerts", "webhooks", "--json", dsn=dsn))
    assert "secret" not in hook
    ok("alerts", "webhook-remove", str(made["webhook_id"]), dsn=dsn)
    for wrong in (("ack", "99"), ("webhook-remove", "99"), ("set", "nothing", "--on")):
        assert run("alerts", *wrong, dsn=dsn).returncode == 2


BIG = "9" * 20


SECRET = "whsec_" + base64.b64encode(b"a secret that nobody is to see").decode()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("ack", BIG), f"no alert {BIG}"),
        (("ack", "0"), "no alert 0"),
        (("webhook-remove", "99999999999"), "no webhook 99999999999"),
        (("webhook-remove", BIG), f"no webhook {BIG}"),
        (("--limit", BIG), "--limit"),
        (("set", "reads", "--threshold", BIG), "bigint"),
        (("set", "reads", "--threshold", "99999999999"), "bad value"),
        (("set", "reads", "--period", "foo"), "interval"),
        (("set", "reads", "--period", "1 month"), "bad value"),
        (("set", "new_secret", "--learns", "foo"), "interval"),
        (("set", "hours", "--opens", "25:99"), "25:99"),
        (("set", "hours", "--closes", "late"), "late"),
        (("set", "hours", "--day", "99999999999"), "integer"),
        (("set", "hours", "--day", "8"), "bad value"),
        (("set", "hours", "--time-zone", "Nowhere/Land"), "bad value"),
        (("set", "reads", "--severity", "loud"), "bad value"),
        (("webhook-add", "https://example.com/" + "x" * 2000, "--secret", SECRET), "2000"),
        (("webhook-add", "https://example.com/", "--secret", SECRET[:-1]), "24 to 64 bytes"),
        (("webhook-add", "ftp://example.com/", "--secret", SECRET), "https"),
    ],
)
def test_bad_arguments_are_one_line_with_a_hint(db: Db, arguments: tuple[str, ...], expected: str) -> None:
    said = fails("alerts", *arguments, dsn=db.dsn())
    assert expected in said
    assert "meshaudit migrate" not in said
    assert SECRET[6:-1] not in said


def test_bytes_that_are_no_text(db: Db) -> None:
    for arguments in (
        ("ack", "1", "--note", "\udcff"),
        ("set", "\udcff", "--on"),
        ("set", "reads", "--period", "\udcff"),
        ("webhook-add", "https://example.com/\udcff"),
        ("webhook-add", "https://example.com/", "--secret", "\udcff"),
    ):
        assert "not valid UTF-8" in fails("alerts", *arguments, dsn=db.dsn())
