-- Append-only: UPDATE, DELETE, TRUNCATE and MERGE fail for everyone, on the ledger and on each partition, also under
-- session_replication_role = replica. An INSERT by hand is refused by chain_entry() (23_chain.sql).

create function meshaudit_private.refuse_change() returns trigger
language plpgsql volatile set search_path = ''
as $$
begin
  raise exception 'the audit log is append-only: % is refused', pg_catalog.lower(tg_op)
    using errcode = 'MA003', hint = 'Entries leave only as whole, archived and verified partitions.';
end
$$;

comment on function meshaudit_private.refuse_change() is 'Raises MA003.';

-- Guards a table: the ledger itself, and each partition, which inherits none of this by itself.
create function meshaudit_private.guard(p_table regclass) returns void
language plpgsql volatile set search_path = ''
as $$
begin
  execute pg_catalog.format(
    'create trigger append_only before update or delete or truncate on %s
       for each statement execute function meshaudit_private.refuse_change()', p_table);
  execute pg_catalog.format('alter table %s enable always trigger append_only', p_table);
  execute pg_catalog.format('alter table %s enable row level security', p_table);
  execute pg_catalog.format('revoke all on %s from public', p_table);
end
$$;

comment on function meshaudit_private.guard(regclass) is 'Makes a table of the ledger append-only and closed.';

select meshaudit_private.guard('meshaudit_private.ledger');
