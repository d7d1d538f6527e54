"""The stand-in for PostgREST: that it sends what PostgREST sends, and the reference user's answers without us."""

import pytest

from tests.meshhook import ALICE, ALICES, BOBS_KEY, GITHUB, STRIPE, MeshHook
from tests.postgrest import Rest
from tests.postgrest.cache import plain_columns


@pytest.fixture(params=["supabase_old", "supabase_new"])
def app(request, template):
    db = template.clone(request.param)
    try:
        yield MeshHook(db)
    finally:
        db.drop()


def test_the_app_gets_its_answers(app):
    calls = app.calls()
    status = {name: answer.status for name, answer in calls.items()}
    assert [r["id"] for r in calls["alice: list"].json()] == [GITHUB, STRIPE]
    assert calls["alice: list"].json()[0]["project"] == {"name": "Alice's hooks"}
    assert (status["alice: list with count"], calls["alice: list with count"].count) == (200, 2)
    assert (status["alice: page"], calls["alice: page"].headers["Content-Range"]) == (206, "1-1/2")
    assert (status["alice: count alone"], calls["alice: count alone"].count) == (200, 2)
    assert calls["alice: of projects"].json() == [
        {
            "name": "Alice's hooks",
            "secrets": [{"id": GITHUB, "key": "GITHUB_TOKEN"}, {"id": STRIPE, "key": "STRIPE_KEY"}],
        }
    ]
    assert (status["alice: nobody's"], status["alice: one"], status["bob: one"]) == (406, 200, 406)
    assert (status["alice: insert"], status["alice: insert again"], status["bob: insert"]) == (201, 409, 403)
    assert (status["alice: insert a duplicate key"], status["alice: insert null"]) == (409, 400)
    assert (status["service_role: insert into nothing"], status["alice: insert into nothing"]) == (409, 403)
    assert (status["anon: insert"], calls["anon: list"].json()) == (401, [])
    assert (status["alice: give away"], status["service_role: give away"]) == (403, 200)
    assert (status["alice: delete"], calls["alice: delete many"].json()) == (
        204,
        [{"key": "A"}, {"key": "B"}],
    )
    assert calls["bob: left over"].json() == [
        {"id": BOBS_KEY, "key": "STRIPE_KEY", "value_encrypted": "\\x736b5f6c6976655f63"}
    ]
    # the comparison that protect() has to stand
    again = app.calls()
    assert again == calls
    assert app.advances()


def test_versions_agree(app):
    assert MeshHookOf(app, 12).calls() == app.calls()


def MeshHookOf(app: MeshHook, version: int) -> MeshHook:
    """The same tables behind another version of PostgREST."""
    other = object.__new__(MeshHook)
    other.db, other.version, other.rest = app.db, version, Rest(app.db, version=version)
    return other


def test_a_key_that_is_an_expression_cannot_be_embedded(app):
    with app.db.connect() as conn:
        conn.execute(
            "create view public.plain with (security_invoker = true) as select id as the_id, project_id as p from public.secrets;"
            "create view public.twice with (security_invoker = true) as select the_id, p as again from public.plain;"
            "create view public.made with (security_invoker = true) as"
            " select id, coalesce(project_id) as project_id from public.secrets;"
            "grant select on public.plain, public.twice, public.made to authenticated"
        )
    app.rest.reload()
    alice = app.rest.as_user(ALICE)
    for view in ("plain", "twice"):
        answer = alice.get(view, select="projects(name)", limit="1")
        assert (answer.status, answer.json()) == (200, [{"projects": {"name": "Alice's hooks"}}])
        back = alice.get("projects", select=f"name,{view}(the_id)").json()
        assert {row["the_id"] for row in back[0][view]} == {STRIPE, GITHUB}
    answer = alice.get("made", select="projects(name)")
    assert (answer.status, answer.json()["code"]) == (400, "PGRST200")


def test_a_views_stored_rule_says_where_its_columns_come_from(app):
    conn = app.db.su
    conn.execute(
        'create view public."odd {( \\view" as select key as "a, b{}", created_at, 1 as n, id from public.secrets order by updated_at'
    )
    rule = """select ev_action::text from pg_rewrite where ev_class = 'public."odd {( \\view"'::regclass"""
    oid = conn.execute("select 'public.secrets'::regclass::oid::int").fetchone()[0]
    (text,) = conn.execute(rule).fetchone()
    assert plain_columns(text) == {1: (oid, 3), 2: (oid, 5), 4: (oid, 1)}


def test_a_get_is_read_only_and_runs_as_the_requests_role(app):
    with app.db.connect() as conn:
        conn.execute(
            "create function public.about() returns json language sql volatile as $$ select json_build_object("
            "'ro', current_setting('transaction_read_only'), 'role', current_user, 'login', session_user,"
            "'method', current_setting('request.method'), 'uid', auth.uid(), 'path', current_setting('search_path')) $$;"
            "create function public.add(a int, b int default 1) returns int language sql immutable as 'select a + b';"
            "create function public.keys(prefix text) returns setof public.secrets language sql stable as"
            " $$ select * from public.secrets s where s.key like prefix || '%' $$;"
            "create function public.nothing() returns void language sql volatile as '';"
            "grant execute on all functions in schema public to authenticated"
        )
    app.rest.reload()
    alice = app.rest.as_user(ALICE)
    told = {
        "role": "authenticated",
        "login": "authenticator",
        "uid": ALICE,
        "path": '"public", "public", "extensions"',
    }
    assert alice.rpc("about").json() == {**told, "ro": "off", "method": "POST"}
    assert alice.rpc("about", get=True).json() == {**told, "ro": "on", "method": "GET"}
    assert (alice.rpc("add", {"a": 2}).json(), alice.rpc("add", {"a": 2, "b": 5}, get=True).json()) == (3, 7)
    assert alice.rpc("keys", {"prefix": "G"}, select="key,projects(name)").json() == [
        {"key": "GITHUB_TOKEN", "projects": {"name": "Alice's hooks"}}
    ]
    assert (alice.rpc("nothing").status, alice.rpc("nothing", {"x": 1}).status) == (204, 404)


def test_errors_become_http(app):
    with app.db.connect() as conn:
        conn.execute(
            "create function public.fail(state text, message text, detail text) returns void language plpgsql as"
            " $$ begin raise exception using errcode = state, message = message, detail = detail; end $$;"
            "grant execute on function public.fail(text, text, text) to anon, authenticated;"
        )
    app.rest.reload()
    alice = app.rest.as_user(ALICE)

    def status(state, message="m", detail="d", caller=alice):
        return caller.rpc("fail", {"state": state, "message": message, "detail": detail}).status

    states = ("P0001", "42501", "25006", "23505", "53100", "40001", "MA001", "PT418", "42P01", "55000")
    assert [status(s) for s in states] == [400, 403, 405, 409, 503, 500, 400, 418, 404, 500]
    assert status("42501", caller=app.rest.as_anon()) == 401
    said = '{"code": "X1", "message": "no", "hint": "try"}'
    answer = alice.rpc(
        "fail", {"state": "PGRST", "message": said, "detail": '{"status": 404, "headers": {"X-A": "1"}}'}
    )
    assert (answer.status, answer.headers) == (404, {"X-A": "1"})
    assert answer.json() == {"code": "X1", "details": None, "hint": "try", "message": "no"}
    assert status("PGRST", said, '{"status": 404}') == 500
    assert status("PGRST", "no json", "{}") == 500


def test_upserts_and_defaults(app):
    alice = app.rest.as_user(ALICE)
    row = {"project_id": ALICES, "key": "STRIPE_KEY", "value_encrypted": "\\x01"}
    merged = alice.insert(
        "secrets", row, resolution="merge-duplicates", on_conflict="project_id,key", select="id", single=True
    )
    assert (merged.status, merged.json()) == (200, {"id": STRIPE})
    ignored = alice.insert(
        "secrets", row, resolution="ignore-duplicates", on_conflict="project_id,key", select="id"
    )
    assert (ignored.status, ignored.json()) == (201, [])
    made = alice.insert(
        "secrets", {**row, "key": "D"}, columns="project_id,key,value_encrypted,id", defaults=True
    )
    assert made.status == 201
    assert (
        alice.insert("secrets", {**row, "key": "E"}, columns="project_id,key,value_encrypted,id").status
        == 400
    )
    assert alice.get("secrets", select="k:key", key="eq.D").json() == [{"k": "D"}]
