"""A short torture; `make torture` is the long one."""

import os

import pytest

from tests import torture


def test_nothing_received_is_missing() -> None:
    if os.environ.get("MESHAUDIT_TEST_DSN") or os.environ.get("MESHAUDIT_TEST_IMAGE"):
        pytest.skip("needs a server that it can kill")
    pg = os.environ.get("MESHAUDIT_TEST_PG") or "embedded"
    report = torture.run(pg, sealer_kills=8, server_kills=2, seconds=60)
    assert report.problems == []
    assert report.sealer_kills > 0
    assert report.server_kills > 0
    assert report.received > 0
