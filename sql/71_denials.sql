-- The bound on denials: 60 entries a minute and identity; the others are counted, and told by one entry a minute.

-- Of the denials among entries, those within the bound; of all others, all.
create function meshaudit_private.bound_denials(p_entries meshaudit_private.ledger[]) returns meshaudit_private.ledger[]
language sql volatile set search_path = ''
as $$
  with numbered as materialized (
    select e.entry, e.minute, e.denied, pg_catalog.row_number() over (
      partition by e.denied, (e.entry).identity_source, (e.entry).user_identity, e.minute order by (e.entry).id) as number
    from (
      select p as entry, p.outcome = 'denied' as denied, pg_catalog.date_trunc('minute', p."timestamp") as minute
      from unnest(p_entries) p) e
  ), before as materialized (
    select d.identity_source, d.user_identity, d.minute, d.denials from meshaudit_private.journal_denials d
  ), counted as (
    insert into meshaudit_private.journal_denials as d (identity_source, user_identity, minute, denials)
      select (n.entry).identity_source, (n.entry).user_identity, n.minute, pg_catalog.count(*) from numbered n where n.denied group by 1, 2, 3
      on conflict (identity_source, user_identity, minute) do update set denials = d.denials + excluded.denials
  )
  select pg_catalog.array_agg(n.entry order by (n.entry).id)
  from numbered n
  left join before b on b.identity_source = (n.entry).identity_source and b.user_identity = (n.entry).user_identity and b.minute = n.minute
  where not n.denied or n.number + coalesce(b.denials, 0) <= 60
$$;

-- One entry for the denials of a minute that were not written, once the minute is well past.
create function meshaudit_private.close_denials() returns meshaudit_private.ledger[]
language sql volatile set search_path = ''
as $$
  with closed as (
    delete from meshaudit_private.journal_denials
    where minute < pg_catalog.clock_timestamp() - '3 minutes'::pg_catalog.interval
    returning identity_source, user_identity, minute, denials
  )
  select pg_catalog.array_agg(row(
    pg_catalog.nextval('meshaudit_private.ledger_id'), (c.denials - 60) || ' more denials', 'read', c.minute,
    c.user_identity, null, 'read', 'denied', 'meshaudit.denials', '*', c.identity_source, null, session_user, session_user,
    null, null, null, pg_catalog.gen_random_uuid(), -1, 0::pg_catalog.int8, ''::pg_catalog.bytea,
    ''::pg_catalog.bytea)::meshaudit_private.ledger)
  from closed c
  where c.denials > 60
$$;

comment on function meshaudit_private.bound_denials(meshaudit_private.ledger[]) is
  'Entries less the denials over 60 a minute and identity, which are counted.';
comment on function meshaudit_private.close_denials() is 'An entry for each past minute''s denials that were not written.';
