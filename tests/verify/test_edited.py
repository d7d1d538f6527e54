"""Entries whose content or hash was altered, by both verifiers."""

import pytest

from tests.verify.tampering import AT, CONTENT, VALUES, Ledger


@pytest.mark.parametrize("column", [*CONTENT, "prev_hash", "hash"])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_column_edited(ledger: Ledger, lane: int, end: int, column: str, where: str):
    seq = {"first": 1, "middle": AT, "last": end}[where]
    (before,) = ledger.all(
        f'select "{column}"::text from meshaudit_private.ledger where lane = %s and seq = %s', lane, seq
    )
    value = VALUES[column]
    if (value,) == before:
        value = {"access_type": "read"}[column]
    ledger.edit(lane, seq, **{column: value})
    ledger.expect(ledger.entry(lane, seq, "edited"))


def test_the_id_edited(ledger: Ledger, lane: int):
    ledger.edit(lane, AT, id=10**12)
    ledger.expect((lane, AT, 10**12, "edited"))


def test_null_and_empty_text_are_not_the_same(ledger: Ledger, lane: int):
    ledger.edit(lane, AT, user_agent="")
    ledger.expect(ledger.entry(lane, AT, "edited"))


@pytest.mark.parametrize("hashes", [b"", None, bytes(31), bytes(33)])
@pytest.mark.parametrize("column", ["hash", "prev_hash"])
def test_hashes_of_another_length(ledger: Ledger, lane: int, hashes: bytes | None, column: str):
    ledger.do(f"alter table {{L}} alter {column} drop not null", rows=None)
    ledger.edit(lane, AT, **{column: hashes})
    ledger.expect(ledger.entry(lane, AT, "edited"))


@pytest.mark.parametrize("moved", [-1, 1])
def test_the_border_between_the_hashes_moved(ledger: Ledger, lane: int, moved: int):
    """The bytes side by side stay the same."""
    ledger.do(
        """update {L} set hash = substr(hash || prev_hash, 1, 32 + %s),
          prev_hash = substr(hash || prev_hash, 33 + %s)
        where lane = %s and seq = %s""",
        moved, moved, lane, AT,
    )  # fmt: skip
    ledger.expect(ledger.entry(lane, AT, "edited"))


def test_every_entry_edited(ledger: Ledger):
    ledger.do("update {L} set scope = scope || 'x'", rows=len(ledger.ids))
    ledger.expect(*(ledger.entry(*place, "edited") for place in ledger.ids))


def test_two_edits_side_by_side(ledger: Ledger, lane: int):
    ledger.edit(lane, AT, scope="x")
    ledger.edit(lane, AT + 1, scope="y")
    ledger.expect(ledger.entry(lane, AT, "edited"), ledger.entry(lane, AT + 1, "edited"))


# Making the hash anew.


@pytest.mark.parametrize("where", ["first", "second", "middle", "last but one", "last"])
def test_an_entry_edited_and_its_hash_made_anew(ledger: Ledger, lane: int, end: int, where: str):
    seq = {"first": 1, "second": 2, "middle": AT, "last but one": end - 1, "last": end}[where]
    ledger.edit(lane, seq, scope="elsewhere")
    ledger.rehash(ledger.ids[lane, seq])
    ledger.expect(ledger.entry(lane, seq, "edited"))


@pytest.mark.parametrize("where", ["first", "second", "middle", "last but one", "last"])
def test_an_entry_made_anew_on_another_predecessor(ledger: Ledger, lane: int, end: int, where: str):
    seq = {"first": 1, "second": 2, "middle": AT, "last but one": end - 1, "last": end}[where]
    ledger.edit(lane, seq, prev_hash=bytes(32))
    ledger.rehash(ledger.ids[lane, seq])
    ledger.expect(ledger.entry(lane, seq, "edited"))


def test_two_entries_made_anew_together(ledger: Ledger, lane: int):
    ledger.edit(lane, AT, scope="elsewhere")
    ledger.rehash(ledger.ids[lane, AT])
    ledger.do(
        "update {L} l set prev_hash = b.hash from {L} b where b.lane = l.lane and b.seq = l.seq - 1"
        " and l.lane = %s and l.seq = %s", lane, AT + 1,
    )  # fmt: skip
    ledger.rehash(ledger.ids[lane, AT + 1])
    ledger.expect(ledger.entry(lane, AT + 1, "edited"))


def test_a_tail_rewritten_is_contradicted_by_the_head(ledger: Ledger, lane: int, end: int):
    ledger.edit(lane, AT, scope="elsewhere")
    ledger.rewrite(lane, AT, head=False)
    ledger.expect(ledger.entry(lane, end, "edited"))


def test_a_tail_rewritten_with_its_head_shows_only_from_outside(ledger: Ledger, lane: int, end: int):
    ledger.edit(lane, AT, scope="elsewhere")
    ledger.rewrite(lane, AT, head=True)
    ledger.expect()
    ledger.expect(ledger.entry(lane, end, "edited"), checkpoint=ledger.checkpoint)
