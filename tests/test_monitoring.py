"""The dashboard and the alert rules ask for metrics that there are."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests.servers import ROOT

NAME = re.compile(r"\bmeshaudit_\w+")


def _expressions() -> Iterator[str]:
    dashboard = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text("utf-8"))
    for panel in dashboard["panels"]:
        assert panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        yield from (target["expr"] for target in panel["targets"])
    rules = yaml.safe_load((ROOT / "docs" / "prometheus-alerts.yml").read_text("utf-8"))
    (group,) = rules["groups"]
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        yield rule["expr"]


def _known() -> set[str]:
    text = "".join(
        (ROOT / "sql" / f"{name}.sql").read_text("utf-8") for name in ("59_verifications", "64_metrics")
    )
    text += Path(ROOT / "meshaudit" / "api" / "metrics.py").read_text("utf-8")
    plain = set(NAME.findall(text))
    return plain | {f"{name}_{part}" for name in plain for part in ("count", "bucket", "total")}


def test_every_metric_that_is_asked_for_exists() -> None:
    asked = [name for expression in _expressions() for name in NAME.findall(expression)]
    assert asked
    assert set(asked) <= _known()


def test_brackets_are_closed() -> None:
    for expression in _expressions():
        for opening, closing in ("()", "[]", "{}"):
            assert expression.count(opening) == expression.count(closing), expression
