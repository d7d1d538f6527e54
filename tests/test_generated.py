"""Migrations are generated, frozen and shipped as they should be."""

import shutil
import sys
from pathlib import Path

import pytest

from meshaudit import migrate
from meshaudit.resources import migrations_dir
from meshaudit.scripts import without_envelope
from meshaudit.version import known
from scripts import generate
from tests.flavours import Templates
from tests.migration_support import ROOT, assert_same, dump, reference, run
from tests.support import Db


def test_generated_files_are_up_to_date() -> None:
    assert "".join(generate.differences()) == ""


def test_frozen_migrations_have_not_changed() -> None:
    assert generate.faults() == []


def test_a_change_of_a_frozen_migration_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "migrations"
    shutil.copytree(migrations_dir(), copy)
    monkeypatch.setattr(generate, "MIGRATIONS", copy)
    monkeypatch.setattr(generate, "SUMS", copy / "SHA256SUMS")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    shutil.copytree(ROOT / "sql", tmp_path / "sql")
    generate.freeze()
    assert generate.faults() == []
    assert copy / "deploy" / f"{known()[0]}.sql" not in generate.generated()
    run("sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS", cwd=copy)
    script = copy / "deploy" / f"{known()[0]}.sql"
    script.write_text(script.read_text() + "\n")
    assert [f for f in generate.faults() if "must not change" in f]


def test_a_started_migration_goes_up_and_down(
    any_empty_db: Db, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "migrations"
    shutil.copytree(migrations_dir(), copy)
    monkeypatch.setattr(generate, "MIGRATIONS", copy)
    monkeypatch.setattr(generate, "SUMS", copy / "SHA256SUMS")
    for module in ("version", "scripts", "migrate"):
        monkeypatch.setattr(f"meshaudit.{module}.migrations_dir", lambda: copy)
    migrate.migrate(any_empty_db.dsn())
    first = dump(any_empty_db)
    generate.add("second", "Nothing yet.")
    for path, text in generate.generated().items():
        path.write_text(text)
    assert known()[-1] == "second"
    assert migrate.migrate(any_empty_db.dsn()) == ["second"]
    assert migrate.down(any_empty_db.dsn(), to=known()[-2]) == ["second"]
    assert_same(dump(any_empty_db), first)
    assert migrate.migrate(any_empty_db.dsn()) == ["second"]
    assert migrate.down(any_empty_db.dsn()) == ["second", *known()[-2::-1]]


def test_the_envelope_is_found_by_the_parser() -> None:
    inside = "select 'commit; …';\ndo $$ begin perform 1; end $$;\n-- commit;\n"
    assert without_envelope(f"-- héader begin;\nBEGIN;\n\n{inside}\ncommit ;\n").strip() == inside.strip()
    for text in ("select 1", "begin; select 1", "begin; commit; select 1; commit", "", "begin; rollback;"):
        with pytest.raises(ValueError, match="one transaction"):
            without_envelope(text)


def test_the_wheel_migrates(empty_db: Db, tmp_path: Path, template: Templates) -> None:
    # hatchling is at hand, and nothing is fetched
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, wheel)
    code = (
        "import sys, meshaudit; from meshaudit import migrate, schema\n"
        "print(meshaudit.__file__, len(schema.current_state()), *migrate.migrate(sys.argv[1]))"
    )
    said = run(sys.executable, "-c", code, empty_db.dsn(), cwd=tmp_path, env={"PYTHONPATH": str(site)})
    files = len(list((ROOT / "sql").glob("*.sql")))
    assert said.split() == [str(site / "meshaudit" / "__init__.py"), str(files), *known()]
    assert_same(dump(empty_db), reference(template, "superuser"))
