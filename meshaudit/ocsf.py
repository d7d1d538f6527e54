"""Entries as events of the Open Cybersecurity Schema Framework 1.8.0, class Datastore Activity (6005).

What the schema has no place for stands under "unmapped", by its own name: nothing of an entry is lost.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from meshaudit import __version__
from meshaudit.queries import Entry

VERSION = "1.8.0"
CLASS = 6005
_ACTIVITIES = {"read": (1, "Read"), "update": (2, "Update"), "create": (6, "Create"), "delete": (7, "Delete")}
_OTHER = (99, "Other")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A rolled-back access was granted: its caller has seen the value, and undone the trace.
_STATUS = {"granted": (1, "Success", 1), "rolled_back": (1, "Success", 3), "denied": (2, "Failure", 2)}
_SEVERITIES = {1: "Informational", 2: "Low", 3: "Medium"}


def event(entry: Entry) -> dict[str, Any]:
    """The OCSF event of an entry."""
    activity, activity_name = _ACTIVITIES.get(entry.operation, _OTHER)
    status, status_name, severity = _STATUS.get(entry.outcome, (99, "Other", 1))
    made: dict[str, Any] = {
        "class_uid": CLASS,
        "class_name": "Datastore Activity",
        "category_uid": 6,
        "category_name": "Application Activity",
        "type_uid": CLASS * 100 + activity,
        "type_name": f"Datastore Activity: {activity_name}",
        "activity_id": activity,
        "activity_name": activity_name,
        "time": (entry.timestamp - _EPOCH) // timedelta(milliseconds=1),
        "severity_id": severity,
        "severity": _SEVERITIES[severity],
        "status_id": status,
        "status": status_name,
        "status_detail": entry.outcome,
        "type_id": 3,
        "type": "Table",
        "table": {"name": entry.secret_table, "uid": entry.secret_id},
        "actor": {
            "user": {"uid": entry.user_identity, "name": entry.user_identity},
            "session": {"issuer": entry.identity_source},
        },
        # The schema wants an endpoint: one without an address is a local socket.
        "src_endpoint": {"name": "local"} if entry.ip_address is None else {"ip": str(entry.ip_address)},
        "metadata": {
            "version": VERSION,
            "product": {"name": "meshaudit", "vendor_name": "meshaudit", "version": __version__},
            "uid": str(entry.access_id),
            "log_name": "meshaudit.audit_logs",
        },
        "unmapped": {
            "id": entry.id,
            "timestamp": entry.timestamp.astimezone(UTC).isoformat(timespec="microseconds"),
            "access_type": entry.access_type,
            "scope": entry.scope,
            "claimed_identity": entry.claimed_identity,
            "db_user": entry.db_user,
            "db_role": entry.db_role,
            "lane": entry.lane,
            "seq": entry.seq,
            "prev_hash": entry.prev_hash.hex() if entry.prev_hash is not None else None,
            "hash": entry.hash.hex(),
        },
    }
    if entry.application_name is not None:
        made["actor"]["app_name"] = entry.application_name
    request = {"user_agent": entry.user_agent, "uid": entry.request_id}
    if any(value is not None for value in request.values()):
        made["http_request"] = {name: value for name, value in request.items() if value is not None}
    return made
