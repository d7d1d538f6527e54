"""Falsified heads, and what only a checkpoint from outside shows."""

from meshaudit.checkpoint import parse_checkpoint
from meshaudit.verify import Checkpoint, take_checkpoint, verify
from tests.support import Db
from tests.verify.tampering import AT, Ledger, deleted


def test_a_head_removed(ledger: Ledger, lane: int, end: int):
    ledger.do("delete from {H} where lane = %s", lane)
    ledger.expect(*(ledger.entry(lane, seq, "inserted") for seq in range(1, end + 1)))


def test_a_head_set_back(ledger: Ledger, lane: int, end: int):
    ledger.do("update {H} set seq = seq - 1, hash = prev_hash where lane = %s", lane)
    ledger.expect(ledger.entry(lane, end, "inserted"))


def test_a_heads_seq_set_back(ledger: Ledger, lane: int, end: int):
    ledger.do("update {H} set seq = seq - 1 where lane = %s", lane)
    ledger.expect(ledger.entry(lane, end - 1, "edited"), ledger.entry(lane, end, "inserted"))


def test_a_head_set_to_nothing(ledger: Ledger, lane: int, end: int):
    ledger.do("update {H} set seq = 0 where lane = %s", lane)
    ledger.expect(*(ledger.entry(lane, seq, "inserted") for seq in range(1, end + 1)))


def test_a_head_set_forward(ledger: Ledger, lane: int, end: int):
    ledger.do("update {H} set seq = seq + 2 where lane = %s", lane)
    ledger.expect(deleted(lane, end + 1, end + 2))


def test_a_heads_hash_edited(ledger: Ledger, lane: int, end: int):
    ledger.do("update {H} set hash = '' where lane = %s", lane)
    ledger.expect(ledger.entry(lane, end, "edited"))


def test_a_tail_cut_with_its_head(ledger: Ledger, lane: int, end: int):
    ledger.do("delete from {L} where lane = %s and seq > %s", lane, AT, rows=end - AT)
    ledger.do(
        "update {H} h set seq = l.seq, hash = l.hash from {L} l where l.lane = h.lane and l.lane = %s"
        " and l.seq = %s", lane, AT,
    )  # fmt: skip
    ledger.expect()
    ledger.expect(deleted(lane, AT + 1, end), checkpoint=ledger.checkpoint)


def test_a_lane_removed_with_its_head(ledger: Ledger, lane: int, end: int):
    ledger.do("delete from {L} where lane = %s", lane, rows=end)
    ledger.do("delete from {H} where lane = %s", lane)
    ledger.expect()
    ledger.expect(deleted(lane, 1, end), checkpoint=ledger.checkpoint)


def test_everything_removed_with_the_heads(ledger: Ledger):
    ledger.do("truncate {L}, {H}", rows=None)
    ledger.expect()
    gone = [deleted(lane, 1, length) for lane, length in ledger.lengths.items()]
    ledger.expect(*gone, checkpoint=ledger.checkpoint)


def test_a_checkpoint_allows_what_came_after_it(db: Db):
    client = db.connect(db.role("client", "meshaudit_client"))
    write = "select meshaudit.write_secret(%s, '\\x00')"
    client.execute(write, ("x",))
    earlier = parse_checkpoint(take_checkpoint(db.su))
    for key in ("x", "y", "z"):
        client.execute(write, (key,))
    report = verify(db.su, checkpoint=earlier)
    assert (report.problems, report.entries, earlier.entries) == ([], 4, 1)
    assert verify(db.su, checkpoint=Checkpoint(earlier.ledger_id, {})).intact


def test_a_checkpoint_does_not_tell_again_what_the_chain_told(ledger: Ledger, lane: int, end: int):
    ledger.edit(lane, end, hash=bytes(32))
    ledger.expect(ledger.entry(lane, end, "edited"), checkpoint=ledger.checkpoint)
    ledger.reset()
    ledger.do("delete from {L} where lane = %s and seq >= %s", lane, AT, rows=end - AT + 1)
    ledger.expect(deleted(lane, AT, end), checkpoint=ledger.checkpoint)
