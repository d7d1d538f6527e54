-- The months go to the ledger, guarded as meshaudit.maintain() would.
do $$
declare
  r record;
begin
  for r in
    select c.oid::regclass::text as name, pg_get_expr(c.relpartbound, c.oid) as bound
    from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'bench.load'::regclass
  loop
    execute format('alter table bench.load detach partition %s', r.name);
    execute format('alter table %s owner to meshaudit_owner', r.name);
    set local role meshaudit_owner;
    execute format('select meshaudit_private.guard(%L)', r.name);
    execute format('alter table meshaudit_private.ledger attach partition %s %s', r.name, r.bound);
    execute format('alter table %s enable always trigger chain_entry', r.name);
    reset role;
  end loop;
  perform setval('meshaudit_private.ledger_id', (select max(id) from meshaudit_private.ledger));
end
$$;
