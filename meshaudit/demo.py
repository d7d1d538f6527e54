"""The whole story on a Postgres of its own: secrets used, accesses searched, a tampering caught.

Invariant: it succeeds only if each step went as told. How the steps are acted is in stage.py.
"""

import psycopg

from meshaudit import db, migrate
from meshaudit.errors import MeshauditError, translate
from meshaudit.narrator import Narrator
from meshaudit.stage import Stage, Untrue, expect

# Ciphertext, as an application would store it; the log must never hold it.
_STRIPE = "\\x9d41c7e20b5a6f83d0"
_DEPLOY = "\\x1f7733ab902e64c8"
_ROTATED = "\\x60b8e5d4417c29fa"
_TITLE = "meshaudit demo: who read which secret, and how do we know that the record is true?"


def run() -> int:
    """Tell it; 0 if every step went as told, else 1."""
    narrator = Narrator()
    db.forget_other_servers()
    narrator.title(_TITLE)
    narrator.step("A Postgres of its own, with meshaudit in it")
    try:
        with Story.open(narrator) as story:
            story.tell()
    except BrokenPipeError:
        raise
    except (Untrue, MeshauditError, psycopg.Error, OSError) as exc:
        exc = translate(exc) if isinstance(exc, psycopg.Error) else exc
        narrator.alarm(f"{narrator.heading}, did not go as told: {' '.join(str(exc).split())}")
        return 1
    return 0


class Story(Stage):
    """The steps, in order; each checks that what it tells is so."""

    def tell(self) -> None:
        self.install()
        self.use_secrets()
        self.audit()
        self.take_checkpoint()
        self.obey()
        self.tamper()
        self.catch()
        self.conclude()

    def install(self) -> None:
        applied = migrate.migrate(self.server.dsn())
        expect(applied, "migrations were applied")
        version = self.value("postgres", "select split_part(version(), ' on ', 1)")
        login = self.value("postgres", "select string_agg(distinct auth_method, ', ') from pg_hba_file_rules")
        self.narrator.say(f"{version} on {self.server.host}; every login by {login}.")
        self.narrator.say(f"Migrations applied: {', '.join(applied)}.")

    def use_secrets(self) -> None:
        tell = self.narrator
        tell.step("Three logins: two services, and one without any grant")
        for name in ("billing", "deployer"):
            self.login(name, "in role meshaudit_client")
        self.login("intern", "")
        tell.say("The services write and read; the values are ciphertext to meshaudit.")
        write = "select meshaudit.write_secret('{}', '{}', '{}')"
        self.stripe = self.ask("billing", write.format("stripe-key", _STRIPE, "payments"))
        read = f"select meshaudit.read_secret('{self.stripe}')"
        expect(self.ask("billing", read) == _STRIPE, "billing reads what it wrote")
        token = self.ask("deployer", write.format("deploy-token", _DEPLOY, "platform"))
        again = self.ask("deployer", write.format("deploy-token", _ROTATED, "platform"))
        expect(again == token, "a new value keeps its secret's id")
        by_key = "select meshaudit.read_secret_by_key('deploy-token', 'platform')"
        expect(self.ask("deployer", by_key) == _ROTATED, "deployer reads the new value")

        tell.say("The intern is refused. That reveals nothing, and so leaves no entry.")
        self.refuse("intern", read, "42501")
        self.refuse("intern", "select value from meshaudit_private.secrets", "42501")

        tell.say("And then deployer, which may, reads the key of billing. Remember this one.")
        self.before = self.value("postgres", "select clock_timestamp()::text")
        expect(self.ask("deployer", read) == _STRIPE, "deployer reads the key")
        self.after = self.value("postgres", "select clock_timestamp()::text")

    def audit(self) -> None:
        tell = self.narrator
        tell.step("An auditor searches")
        self.login("auditor", "")
        self.ask("postgres", "select meshaudit.grant_auditor('auditor')", silent=True)
        tell.say("One secret:")
        theirs = [("deployer", "read"), ("billing", "read"), ("billing", "create")]
        self.search(f"secret_id => '{self.stripe}'", theirs)
        tell.say("A range of time, the seconds around that read:")
        self.search(f"from_time => '{self.before}', to_time => '{self.after}'", [("deployer", "read")])
        tell.say("One identity:")
        found = self.search(
            "user_identity => 'deployer'",
            [("deployer", kind) for kind in ("read", "read", "update", "create")],
        )
        self.target = found[0][5]
        tell.say("One type of access (the grant to the auditor is an entry too):")
        writers = [
            ("postgres", "create"),
            ("deployer", "update"),
            ("deployer", "create"),
            ("billing", "create"),
        ]
        self.search("access_type => 'write'", writers)
        tell.say("The auditor reads the log and nothing else; who uses secrets does not read the log.")
        self.refuse("auditor", f"select meshaudit.read_secret('{self.stripe}')", "42501")
        self.refuse("billing", "select * from meshaudit.audit_logs", "42501")

    def take_checkpoint(self) -> None:
        tell = self.narrator
        tell.step("A checkpoint, kept outside the database; and the log is intact")
        self.program(["checkpoint", "--output", str(self.checkpoint)], 0)
        # as a superuser: an auditor's own query would be one more entry
        entries = self.value("postgres", "select count(*) from meshaudit.audit_logs")
        text = self.program(["verify", "--checkpoint", str(self.checkpoint)], 0)
        expect(f"intact: {entries} entries" in text, f"all {entries} entries were verified")
        self.entries = entries

    def obey(self) -> None:
        self.narrator.step("A superuser cannot change the log by accident")
        for statement in (
            f"update meshaudit_private.ledger set user_identity = 'billing' where id = {self.target}",
            f"delete from meshaudit_private.ledger where id = {self.target}",
            "truncate meshaudit_private.ledger",
        ):
            self.refuse("postgres", statement, "MA003")

    def tamper(self) -> None:
        tell = self.narrator
        tell.step("But on purpose: one entry is altered behind the triggers' back")
        table = "alter table meshaudit_private.ledger"
        self.ask("postgres", f"{table} disable trigger append_only", silent=True)
        forged = "update meshaudit_private.ledger set user_identity = 'billing', db_user = 'billing'"
        changed = self.ask("postgres", f"{forged}\n  where id = {self.target}", silent=True)
        expect(changed == 1, "one entry was altered")
        self.ask("postgres", f"{table} enable always trigger append_only", silent=True)
        tell.say("Everything seems in order again. The log now says that billing read its own key:")
        theirs = [("billing", "read"), ("billing", "read"), ("billing", "create")]
        self.search(f"secret_id => '{self.stripe}'", theirs)
        guarded = self.value("postgres", "select ok from meshaudit.status() where \"check\" = 'append-only'")
        expect(guarded, "status() finds the triggers in place")

    def catch(self) -> None:
        tell = self.narrator
        tell.step("verify names the entry")
        where = f"select lane, seq, id from meshaudit.audit_logs where id = {self.target}"
        self.place = self.rows("auditor", where)[0]
        lane, seq, number = self.place
        self.entries = self.value("postgres", "select count(*) from meshaudit.audit_logs")
        text = self.program(["verify"], 1)
        expect(f"lane {lane}, seq {seq}, id {number}: edited" in text, "verify names that entry")
        expect("1 problem " in text, "and no other")
        tell.say("The database's own verification, which shares no code with the program's, agrees:")
        statement = "select lane, seq, id, problem from meshaudit.verify()"
        tell.prompt("auditor=>", f"{statement};")
        rows = self.rows("auditor", statement)
        tell.table(("lane", "seq", "id", "problem"), rows)
        expect(rows == [(lane, seq, number, "edited")], "meshaudit.verify() names that entry and no other")

    def conclude(self) -> None:
        tell = self.narrator
        lane, seq, number = self.place
        tell.step("What happened")
        tell.say("deployer read the key of billing, and the log recorded it in the same transaction.")
        tell.say(
            "A superuser switched the protection off, made the entry say billing, and switched it on again."
        )
        tell.say("No search and no status shows that. The hash chain does:")
        tell.alarm(f"entry {number} (lane {lane}, seq {seq}) is not what was recorded: edited.")
        tell.good(f"the other {self.entries - 1} of {self.entries} entries are.")
