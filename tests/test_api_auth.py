"""Tokens that must not be believed: every one gets 401. And what the program refuses before it serves."""

import base64
import hashlib
import hmac
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from tests.api_support import SECRET, Api, b64, bearer, gateway, problem, serving, token
from tests.cli_support import fails
from tests.flavours import Templates
from tests.support import Db

RSA = rsa.generate_private_key(65537, 2048)
WEAK = rsa.generate_private_key(65537, 1024)
EC = ec.generate_private_key(ec.SECP256R1())
FOREIGN = rsa.generate_private_key(65537, 2048)
PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _jwk(key: Any, kid: str) -> dict[str, Any]:
    maker: Any = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return {**json.loads(maker.to_jwk(key.public_key())), "kid": kid, "use": "sig"}


@pytest.fixture(scope="module")
def auth_db(template: Templates) -> Iterator[Db]:
    db = template.clone("superuser")
    try:
        gateway(db)  # the roles first: a grant to a subject lets them ask
        db.su.execute("select meshaudit.grant_auditor('sub')")
        yield db
    finally:
        db.drop()


@pytest.fixture(scope="module")
def api(auth_db: Db, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    jwks = tmp_path_factory.mktemp("keys") / "jwks.json"
    shared = {"kty": "oct", "k": b64(b"x" * 32), "kid": "oct"}
    jwks.write_text(json.dumps({"keys": [_jwk(RSA, "r"), _jwk(EC, "e"), _jwk(WEAK, "weak"), shared]}))
    env = {"MESHAUDIT_JWKS": str(jwks), "MESHAUDIT_JWT_ISSUER": "us", "MESHAUDIT_JWT_AUDIENCE": "audit"}
    with serving(auth_db, env=env) as running:
        yield running


def _claims(**more: Any) -> dict[str, Any]:
    claims = {
        "sub": "sub",
        "role": "authenticated",
        "iss": "us",
        "aud": "audit",
        "exp": int(time.time()) + 600,
    }
    return {name: value for name, value in (claims | more).items() if value is not None}


def _signed(key: Any, algorithm: str, headers: dict[str, Any] | None = None, **more: Any) -> str:
    return jwt.encode(_claims(**more), key, algorithm, headers)


def _hs(secret: str = SECRET, header: dict[str, Any] | None = None, **more: Any) -> str:
    return token(
        secret, header=header, **_claims(**more) | {name: None for name, v in more.items() if v is None}
    )


def _with_payload(text: str) -> str:
    signed = f"{b64(json.dumps({'alg': 'HS256'}).encode())}.{b64(text.encode())}"
    return f"{signed}.{b64(hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).digest())}"


def _attacks() -> Iterator[tuple[str, str]]:
    good = _hs()
    head, body, signature = good.split(".")
    raw = json.dumps(_claims())
    for name in ("none", "None", "NONE", ""):
        yield f"alg {name!r}", f"{b64(json.dumps({'alg': name}).encode())}.{body}."
        yield f"alg {name!r}, signed", f"{b64(json.dumps({'alg': name}).encode())}.{body}.{signature}"
    yield "stripped signature", f"{head}.{body}."
    yield "no signature part", f"{head}.{body}"
    yield "another body", f"{head}.{b64(raw.replace('sub', 'sub2').encode())}.{signature}"
    yield "the public key as a secret", token(PEM.decode(), header={"kid": "r"}, **_claims())
    yield "the JWK as a secret", token(json.dumps(_jwk(RSA, "r")), header={"kid": "r"}, **_claims())
    yield "the set's symmetric key", token("x" * 32, header={"kid": "oct"}, **_claims())
    yield "HS384", jwt.encode(_claims(), SECRET, "HS384")
    yield "RS512", _signed(RSA, "RS512", {"kid": "r"})
    yield "PS256", _signed(RSA, "PS256", {"kid": "r"})
    yield "foreign key", _signed(FOREIGN, "RS256", {"kid": "r"})
    yield "foreign key in the header", _signed(FOREIGN, "RS256", {"jwk": _jwk(FOREIGN, "r")})
    yield "a set elsewhere", _signed(FOREIGN, "RS256", {"jku": "http://127.0.0.1:1/", "kid": "r"})
    yield "weak key", _signed(WEAK, "RS256", {"kid": "weak"})
    yield "another curve", _signed(ec.generate_private_key(ec.SECP384R1()), "ES384", {"kid": "e"})
    yield "RSA name, EC key", _signed(RSA, "RS256", {"kid": "e"})
    for kid in ("../../etc/passwd", "/dev/null", "x' or 1=1 --", "", "R", "r\0"):
        yield f"kid {kid!r}", _signed(RSA, "RS256", {"kid": kid})
    yield "kid is a number", _hs(header={"kid": 7})
    yield "crit", _hs(header={"crit": ["exp"]})
    yield "b64", _hs(header={"b64": False, "crit": ["b64"]})
    yield "alg is a list", _hs(header={"alg": ["HS256", "none"]})
    yield "expired", _hs(exp=int(time.time()) - 10)
    yield "no expiry", token(**{**_claims(), "exp": None})
    yield "expiry is text", _hs(exp="soon")
    yield "not yet valid", _hs(nbf=int(time.time()) + 60)
    yield "issued later", _hs(iat=int(time.time()) + 60)
    yield "wrong audience", _hs(aud="others")
    yield "no audience", token(**{**_claims(), "aud": None})
    yield "wrong issuer", _hs(iss="them")
    yield "no issuer", token(**{**_claims(), "iss": None})
    yield "another secret", _hs(SECRET + "!")
    yield "subject is a number", _hs(sub=7)
    yield "subject of a NUL", _hs(sub="a\0b")
    yield "subject of half a character", _hs(sub="\ud800")
    yield "subject too long", _hs(sub="s" * 257)
    yield "role is a list", _hs(role=["authenticated"])
    yield "a number that is none", _with_payload(raw[:-1] + ', "x": NaN}')
    yield "infinity", _with_payload(raw[:-1] + ', "x": 1e999}')
    yield "deep", _with_payload(raw[:-1] + ', "x": ' + "[" * 2500 + "]" * 2500 + "}")
    yield "no object", _with_payload("[]")
    yield "no JSON", _with_payload("x")
    yield "oversized", _hs(x="y" * 9000)
    yield "garbage", "x.y.z"
    yield "not base64", f"{head}.{body}.=%%="
    yield "encrypted", "a.b.c.d.e"


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_no_false_token_is_taken(api: Api) -> None:
    taken = []
    for name, attack in _attacks():
        for path in ("/api/audit-logs", "/api/audit-logs/stream"):
            answer = api.client.send(
                api.client.build_request("GET", path, headers={"Authorization": f"Bearer {attack}"}),
                stream=True,
            )
            # Only what is refused has an end.
            if answer.status_code != 401 or not answer.headers["www-authenticate"].startswith("Bearer "):
                taken.append((name, answer.status_code))
            else:
                answer.read()
                problem(answer, 401)
            answer.close()
    assert not taken


def test_every_route_asks_for_a_token(api: Api) -> None:
    for path in api.get("/openapi.json").json()["paths"]:
        if path.startswith("/api") or path == "/metrics":
            answer = api.get(path.replace("{id}", "1"))
            assert problem(answer, 401)
            assert answer.headers["www-authenticate"] == 'Bearer realm="meshaudit"'


def test_schemes_and_twice(api: Api) -> None:
    basic = base64.b64encode(f"x:{_hs()}".encode()).decode()
    for header in (f"Basic {basic}", _hs(), "Bearer"):
        assert problem(api.client.get("/api/audit-logs", headers={"Authorization": header}), 401)
    twice = [("Authorization", f"Bearer {_hs()}"), ("Authorization", f"Bearer {_hs()}")]
    assert problem(api.client.get("/api/audit-logs", headers=twice), 401)


def test_good_ones_are_taken(api: Api) -> None:
    good = (
        _hs(),
        _signed(RSA, "RS256", {"kid": "r"}),
        _signed(EC, "ES256", {"kid": "e"}),
        _signed(EC, "ES256"),
    )
    for text in (*good, _hs(aud=["audit", "x"])):
        answer = api.client.get("/api/audit-logs", headers={"Authorization": f"Bearer {text}"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["items"]


def test_a_key_set_that_changes(auth_db: Db, tmp_path: Path) -> None:
    """A key that is not in the set is looked for again; RS256 is then the only way in."""
    jwks = tmp_path / "jwks.json"
    jwks.write_text(json.dumps({"keys": [_jwk(EC, "e")]}))
    env = {"MESHAUDIT_JWKS": f"file://{jwks}", "MESHAUDIT_JWT_SECRET": ""}
    with serving(auth_db, env=env) as api:
        ask = {"Authorization": f"Bearer {_signed(EC, 'ES256', {'kid': 'e'}, aud=None)}"}
        assert api.client.get("/api/audit-logs", headers=ask).status_code == 200
        assert problem(api.client.get("/api/audit-logs", headers=bearer("sub")), 401)


def test_what_the_program_refuses(auth_db: Db, tmp_path: Path) -> None:
    dsn = auth_db.dsn(gateway(auth_db))
    env = {"MESHAUDIT_JWT_SECRET": SECRET}
    assert "shorter than 32 bytes" in fails("serve", dsn=dsn, env={"MESHAUDIT_JWT_SECRET": "short"})
    assert "PEM" in fails("serve", dsn=dsn, env={"MESHAUDIT_JWT_SECRET": PEM.decode()})
    assert "not loopback" in fails("serve", "--host", "0.0.0.0", dsn=dsn)
    assert "not loopback" in fails("serve", "--host", "::", dsn=dsn)
    assert "superuser" in fails("serve", dsn=auth_db.dsn(), env=env)
    assert "bypasses row security" in fails(
        "serve", dsn=auth_db.dsn(auth_db.role("b", bypassrls=True)), env=env
    )
    nothing = fails("serve", "--port", "0", dsn=dsn, env={"MESHAUDIT_JWKS": str(tmp_path / "x")})
    assert f"MESHAUDIT_JWKS: cannot read {tmp_path / 'x'}: No such file" in nothing
    nobody = fails("serve", dsn=dsn, env={"MESHAUDIT_JWKS": "http://u:pw@127.0.0.1:1/jwks?token=t"})
    assert "cannot read http://127.0.0.1:1/jwks: " in nobody
    for text in (b"root:x:0:0:root", b"\xff"):
        (tmp_path / "no.json").write_bytes(text)
        said = fails("serve", "--port", "0", dsn=dsn, env={"MESHAUDIT_JWKS": str(tmp_path / "no.json")})
        assert f"MESHAUDIT_JWKS: {tmp_path / 'no.json'} is not JSON" in said
    nested = tmp_path / "nested"
    nested.write_text('{"keys": [' + "[" * 100_000)
    said = fails("serve", "--port", "0", dsn=dsn, env={"MESHAUDIT_JWKS": str(nested)})
    assert "MESHAUDIT_JWKS" in said
    assert "bug" not in said
    assert "not an origin" in fails("serve", "--cors-origin", "*", dsn=dsn, env=env)
    assert "--trusted-proxy" in fails("serve", "--trusted-proxy", "x", dsn=dsn, env=env)
    assert "hint: " in fails("serve", dsn="postgresql://127.0.0.1:1/x", env=env)
    assert "a DSN looks like" in fails("serve", dsn="nonsense", env=env)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = fails("serve", "--port", str(taken.getsockname()[1]), dsn=dsn, env=env)
        assert "cannot listen on 127.0.0.1" in said


def test_without_the_extra_it_says_what_to_install() -> None:
    blocked = "import sys; sys.modules['fastapi'] = None; from meshaudit.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", blocked, "serve"], capture_output=True, text=True)
    assert done.returncode == 2
    assert 'pip install "meshaudit[api]"' in done.stderr


def test_pages_of_a_configured_origin_may_ask(auth_db: Db) -> None:
    with serving(auth_db, "--cors-origin", "https://console.example") as api:
        for origin, allowed in (("https://console.example", True), ("https://evil.example", False)):
            headers = api.client.get("/healthz", headers={"Origin": origin}).headers
            assert (headers.get("access-control-allow-origin") == origin) is allowed
