"""What Prometheus is told: this server's own numbers, and those that the database gives to the caller."""

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import Scope

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_HELP = {
    "meshaudit_entries": "Entries of the log that have passed through the feed.",
    "meshaudit_seal_lag_seconds": "Seconds since the journal was last sealed.",
    "meshaudit_seal_lag_bytes": "Bytes of write-ahead log that are not sealed yet.",
    "meshaudit_journal_armed": "1 while the journal is armed.",
    "meshaudit_journal_refused": "Records of the journal that were refused.",
    "meshaudit_feed_lag_seconds": "Seconds since the feed was last filled.",
    "meshaudit_feed_events": "Events that the feed has got.",
    "meshaudit_partitions_ahead": "Partitions ahead of now.",
    "meshaudit_verified_timestamp_seconds": "When the log was last verified, since the epoch.",
    "meshaudit_verified_age_seconds": "Seconds since the log was last verified.",
    "meshaudit_verified_problems": "Problems that the last verification found.",
    "meshaudit_verified_entries": "Entries that the last verification looked at.",
    "meshaudit_verify_progress_ratio": "How far a verification is that runs now, of 1.",
    "meshaudit_check_ok": "1 if that check of meshaudit.status() is well.",
    "meshaudit_alerts": "Alerts raised, by rule and severity.",
    "meshaudit_function_calls": "Calls of a function of the access path, if track_functions counts them.",
    "meshaudit_function_seconds": "Time spent in a function of the access path, what it calls included.",
}


class Metrics:
    """This server's own numbers."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "meshaudit_api_request_seconds",
            "Requests by route, method and status, and how long they took.",
            ("route", "method", "status"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._open = Gauge(
            "meshaudit_api_open", "Streams and exports that are open.", ("kind",), registry=self._registry
        )

    def request(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one. Only names that are ours become labels: what clients make up would fill the memory."""
        route = scope.get("route")
        path = getattr(route, "path", None) or "other"
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(path, method, str(status)).observe(seconds)

    def open(self, kind: str, number: int) -> None:
        """How many of a kind are open."""
        self._open.labels(kind).set(number)

    def page(self, rows: Iterable[dict[str, Any]]) -> bytes:
        """The whole page, with what the database said."""
        # A registry of its own for each caller's numbers: nobody else's page may hold them.
        registry = CollectorRegistry()
        registry.register(_Rows(list(rows)))
        return generate_latest(self._registry) + generate_latest(registry)


class _Rows(Collector):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for row in self._rows:
            counted = row["name"].endswith("_total")
            name, labels = row["name"].removesuffix("_total"), dict(row["labels"])
            made = CounterMetricFamily if counted else GaugeMetricFamily
            family = families.setdefault(
                name, made(name, _HELP.get(name, name), labels=tuple(sorted(labels)))
            )
            family.add_metric([str(labels[key]) for key in sorted(labels)], row["value"])
        yield from families.values()
