"""alerts: list, ack, test, rules, set, webhooks, webhook-add, webhook-remove, send."""

import signal
from threading import Event
from typing import Annotated, Any

import typer

from meshaudit import alerts, db, filters, output, sealer, webhooks
from meshaudit.commands.options import Dsn, Json, between, dsn, stands, wants_json
from meshaudit.errors import BadArgument
from meshaudit.version import require_current

app = typer.Typer(help="Alerts: list, acknowledge, test, rules, webhooks.", invoke_without_command=True)


@app.callback(invoke_without_command=True)
def listing(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", min=0, help="How many, newest first; 0 is all.")] = 50,
    unacknowledged: Annotated[
        bool, typer.Option("--open", help="Only what nobody has acknowledged.")
    ] = False,
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """The newest alerts."""
    if context.invoked_subcommand:
        for option, given in (("--limit", stands(context, "limit")), ("--open", unacknowledged)):
            if given:
                raise BadArgument(
                    f"{option} is for the list of alerts, not for {context.invoked_subcommand}",
                    f"leave {option} out",
                )
        between(context, database, as_json)
        return
    limit = filters.most("--limit", limit)
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        found = alerts.listed(conn, limit=limit, unacknowledged=unacknowledged)
    if wants_json(context, as_json):
        output.dump([alert.plain() for alert in found])
    elif found:
        header = ("id", "raised", "severity", "rule", "identity", "scope", "count", "message", "acknowledged")
        output.table(
            header,
            [
                (
                    *(str(a.alert_id), output.stamp(a.raised_at), a.severity, a.rule, a.user_identity or ""),
                    *(a.scope, str(a.count), a.message, a.acknowledged_by or ""),
                )
                for a in found
            ],
        )
    else:
        print("no alerts")


@app.command()
def ack(
    context: typer.Context,
    alert_id: Annotated[int, typer.Argument(metavar="ID")],
    note: Annotated[str | None, typer.Option("--note", help="What to keep with it.")] = None,
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Acknowledge an alert."""
    note = filters.plain("--note", note)
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        if not alerts.acknowledge(conn, alert_id, note):
            raise BadArgument(f"no alert {alert_id}", "meshaudit alerts lists those that you may see")
    _say(context, as_json, {"alert_id": alert_id, "acknowledged": True}, f"acknowledged: {alert_id}")


@app.command(name="test")
def raise_one(context: typer.Context, database: Dsn = None, as_json: Json = False) -> None:
    """Raise an alert that goes every way alerts go."""
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        number = alerts.raise_one(conn)
    _say(context, as_json, {"alert_id": number}, f"raised: {number}")


@app.command()
def rules(context: typer.Context, database: Dsn = None, as_json: Json = False) -> None:
    """The rules."""
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        found = alerts.rules(conn)
    _rows(context, as_json, found)


@app.command(name="set")
def set_rule(
    context: typer.Context,
    rule: str,
    enabled: Annotated[bool | None, typer.Option("--on/--off")] = None,
    threshold: Annotated[int | None, typer.Option("--threshold")] = None,
    period: Annotated[str | None, typer.Option("--period", help="Such as '5 minutes'.")] = None,
    learns: Annotated[str | None, typer.Option("--learns", help="Such as '1 day'.")] = None,
    severity: Annotated[str | None, typer.Option("--severity", help="info, warning or critical.")] = None,
    time_zone: Annotated[str | None, typer.Option("--time-zone")] = None,
    opens: Annotated[str | None, typer.Option("--opens", help="Such as 07:00.")] = None,
    closes: Annotated[str | None, typer.Option("--closes", help="Such as 19:00.")] = None,
    days: Annotated[list[int] | None, typer.Option("--day", help="1 is Monday; may be repeated.")] = None,
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Change a rule. This is itself an entry in the log."""
    texts = {
        "period": period, "learns": learns, "severity": severity, "time_zone": time_zone, "opens": opens,
        "closes": closes,
    }  # fmt: skip
    values: dict[str, Any] = {"enabled": enabled, "threshold": threshold, "days": days or None} | {
        name: filters.plain(f"--{name.replace('_', '-')}", text) for name, text in texts.items()
    }
    rule = filters.plain("RULE", rule) or ""
    if all(value is None for value in values.values()):
        raise BadArgument("nothing to change is given", "its options: meshaudit alerts set --help")
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        alerts.set_rule(conn, rule, values)
    _say(context, as_json, {"rule": rule, "changed": True}, f"changed: {rule}")


@app.command(name="webhooks")
def list_webhooks(context: typer.Context, database: Dsn = None, as_json: Json = False) -> None:
    """The webhooks, and what waits for them."""
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        found = alerts.webhooks(conn)
    _rows(context, as_json, found)


@app.command()
def webhook_add(
    context: typer.Context,
    url: str,
    secret: Annotated[str | None, typer.Option("--secret", envvar="MESHAUDIT_WEBHOOK_SECRET")] = None,
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Have alerts sent to a URL; prints the secret that the receiver verifies with."""
    url, secret = filters.plain("URL", url) or "", filters.plain("--secret", secret)
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        number, made = alerts.add_webhook(conn, url, secret)
    _say(context, as_json, {"webhook_id": number, "secret": made}, f"webhook {number}, secret {made}")


@app.command()
def webhook_remove(
    context: typer.Context,
    webhook_id: Annotated[int, typer.Argument(metavar="ID")],
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """No more alerts to a webhook."""
    with db.connect(dsn(context, database)) as conn:
        require_current(conn)
        if not alerts.remove_webhook(conn, webhook_id):
            raise BadArgument(f"no webhook {webhook_id}", "meshaudit alerts webhooks lists them")
    _say(context, as_json, {"webhook_id": webhook_id, "removed": True}, f"removed: {webhook_id}")


@app.command()
def send(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until SIGTERM or Ctrl-C.")] = False,
    database: Dsn = None,
    as_json: Json = False,
) -> None:
    """Send what is due to the webhooks; `meshaudit seal --follow` does it too."""
    where = dsn(context, database)
    with db.connect(where) as conn:
        require_current(conn)
        sent = webhooks.send_due(conn)
    if follow:
        stop = Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        webhooks.follow(where, stop=stop, log=sealer.json_lines)
    else:
        _say(context, as_json, sent._asdict(), f"sent: {sent.delivered}, failed: {sent.failed}")


def _say(context: typer.Context, as_json: bool, value: dict[str, Any], text: str) -> None:
    if wants_json(context, as_json):
        output.dump(value)
    else:
        print(output.printable(text))


def _rows(context: typer.Context, as_json: bool, rows: list[dict[str, Any]]) -> None:
    output.records(rows, as_json=wants_json(context, as_json), none="none")
