"""schemathesis finds no request that the API answers otherwise than its OpenAPI document says."""

from tests.api_support import gateway, serving
from tests.fuzz_api import fuzz
from tests.support import Db


def test_the_document_is_kept_to(db: Db) -> None:
    login = gateway(db)
    db.su.execute("select meshaudit.grant_auditor('fuzz')")
    with serving(db, "--stream-for", "0.1", login=login) as api:
        asked = fuzz(api, "fuzz", 12)
        assert set(asked) == {
            f"GET {path}"
            for path in (
                *(
                    "/api/audit-logs",
                    "/api/audit-logs/export",
                    "/api/audit-logs/stream",
                    "/api/audit-logs/{id}",
                ),
                *("/api/status", "/healthz", "/readyz", "/metrics"),
            )
        }
        _, said = api.stop()
        assert "Traceback" not in said
