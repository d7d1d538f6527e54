"""A real server, on a real Postgres, asked over a real socket."""

import base64
import contextlib
import hashlib
import hmac
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import psycopg

from tests.cli_support import PROGRAM, environment
from tests.flavours import Templates
from tests.support import Db

SECRET = "a secret of the tests, long enough for every HS there is, 512 included"


def b64(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(secret: str = SECRET, *, header: Mapping[str, Any] | None = None, **claims: Any) -> str:
    """A token, made by hand, so that it can be wrong in any way."""
    body = {"exp": int(time.time()) + 600, "role": "authenticated"} | claims
    body = {name: value for name, value in body.items() if value is not None}
    head = {"alg": "HS256", "typ": "JWT"} | dict(header or {})
    text = f"{b64(json.dumps(head).encode())}.{b64(json.dumps(body).encode())}"
    return f"{text}.{b64(hmac.new(secret.encode(), text.encode(), hashlib.sha256).digest())}"


def bearer(subject: str, **claims: Any) -> dict[str, str]:
    """Headers of a caller."""
    return {"Authorization": f"Bearer {token(sub=subject, **claims)}"}


def gateway(db: Db) -> str:
    """A login that the database believes, and that may become authenticated and anon."""
    for role in ("anon", "authenticated"):
        db.pg.create_role(role, "nologin")
    login = db.role("gateway", inherit=False)
    db.pg.run(f"grant anon, authenticated to {login}")
    db.su.execute("select meshaudit.set_setting('gateway_roles', %s)", [f"authenticator,{login}"])
    return login


class Api:
    """A running `meshaudit serve`."""

    def __init__(self, dsn: str, *args: str, env: Mapping[str, str] | None = None) -> None:
        given = {"MESHAUDIT_DSN": dsn, "MESHAUDIT_JWT_SECRET": SECRET, "PYTHONUNBUFFERED": "1"} | dict(
            env or {}
        )
        self.process = subprocess.Popen(
            [*PROGRAM, "serve", "--port", "0", *args],
            env=environment(given),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            raise AssertionError(self.process.communicate()[1])
        self.url = line.split()[-1]
        self.client = httpx.Client(base_url=self.url, timeout=30)
        deadline = time.monotonic() + 20
        while True:
            try:
                self.client.get("/healthz")
                return
            except httpx.TransportError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.02)

    def get(self, path: str, who: Mapping[str, str] | None = None, **params: Any) -> httpx.Response:
        """GET as somebody."""
        return self.client.get(path, headers=who, params=params or None)

    def memory(self) -> int:
        """The most that was resident, in bytes."""
        with open(f"/proc/{self.process.pid}/status") as status:  # noqa: PTH123
            line = next(line for line in status if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    def stop(self) -> tuple[int, str]:
        """SIGTERM; its exit code and what it has said on stderr."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            _, said = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.communicate()
            raise
        return self.process.returncode, said


@contextlib.contextmanager
def serving(db: Db, *args: str, login: str = "", env: Mapping[str, str] | None = None) -> Iterator[Api]:
    """A server for that database."""
    api = Api(db.dsn(login or gateway(db)), *args, env=env)
    try:
        yield api
    finally:
        api.stop()


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The problem document that it must be."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["status"] == status
    assert document["type"].startswith("urn:meshaudit:problem:")
    assert document["detail"]
    return document


def record(db: Db, *keys: str, scope: str = "") -> psycopg.Connection[Any]:
    """Entries of a service: one create each."""
    conn = db.connect(db.role("service", "meshaudit_client"))
    for key in keys:
        conn.execute("select meshaudit.write_secret(%s, 'v', %s)", [key, scope])
    return conn


@contextlib.contextmanager
def audited(template: Templates) -> Iterator[Db]:
    """A database with five entries of two scopes, their auditors, and a gateway's login in public.login."""
    db = template.clone("superuser")
    try:
        login = gateway(db)
        db.su.execute("create table public.login (name text)")
        db.su.execute("insert into public.login values (%s)", [login])
        for subject, scope in (("sees-all", "*"), ("sees-one", "one"), ("sees-two", "two")):
            db.su.execute("select meshaudit.grant_auditor(%s, %s)", [subject, scope])
        record(db, "a", "b", "c", scope="one")
        record(db, "d", "e", scope="two")
        yield db
    finally:
        db.drop()


def events(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Server-sent events, those without data too."""
    event: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            if name:
                event[name] = value.removeprefix(" ")
        elif event:
            yield event
            event = {}
