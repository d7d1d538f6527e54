"""Migration "ledger" for yoyo: the scripts that sqitch runs."""

from yoyo import step

from meshaudit.scripts import steps

__depends__: set[str] = set()
step(*steps("ledger"))
