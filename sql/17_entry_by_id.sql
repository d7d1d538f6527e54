-- An entry by its number, as GET /api/audit-logs/{id} asks. Numbers grow as rows are added, so that a summary of each range of
-- pages finds them, and costs an access next to nothing, where a B-tree would cost what each of the others does.

create index ledger_by_id on meshaudit_private.ledger using brin (id) with (pages_per_range = 32);
