-- Until when a partition, or an archive, is kept: which scopes are in it, and what their policies say.

-- The scopes in a partition, by leaps through the index: their number counts, not that of the entries.
create function meshaudit_private.scopes_of(p_leaf regclass) returns text[]
language plpgsql stable set search_path = ''
as $$
declare
  v_scopes pg_catalog.text[];
begin
  execute pg_catalog.format('with recursive s (scope) as (
      (select l.scope from only %1$s l order by l.scope limit 1)
      union all
      select (select l.scope from only %1$s l where l.scope > s.scope order by l.scope limit 1) from s where s.scope is not null)
    select pg_catalog.array_agg(s.scope) from s where s.scope is not null', p_leaf) into v_scopes;
  return coalesce(v_scopes, '{}');
end
$$;

-- Whether a partition has an entry of that scope; for '*': of one that is not among p_others.
create function meshaudit_private.has_scope(p_leaf regclass, p_scope text, p_others text[]) returns boolean
language plpgsql stable set search_path = ''
as $$
declare
  v_found pg_catalog.bool;
begin
  if p_scope <> '*' then
    execute pg_catalog.format('select exists (select from only %s l where l.scope = $1)', p_leaf) into v_found using p_scope;
  else
    v_found := exists (select from unnest(meshaudit_private.scopes_of(p_leaf)) s where s <> all (p_others));
  end if;
  return v_found;
end
$$;

-- The scope of a partition that is kept longest, and until when; and one that no policy is in force for.
create function meshaudit_private.kept_in_database(
  p_leaf regclass, p_to timestamptz, out scope text, out until timestamptz, out uncovered text
)
language plpgsql stable set search_path = ''
as $$
declare
  v_others constant pg_catalog.text[] := array(select o.scope from meshaudit_private.retention_of(p_to) o where o.scope <> '*');
  r pg_catalog.record;
begin
  for r in select * from meshaudit_private.retention_of(p_to) o order by o.database_until desc nulls last, o.scope loop
    if (until is null or not r.covered) and meshaudit_private.has_scope(p_leaf, r.scope, v_others) then
      if until is null then
        until := r.database_until;
        scope := r.scope;
      end if;
      if not r.covered then
        uncovered := r.scope;
      end if;
    end if;
  end loop;
end
$$;

-- The same of an archive with these scopes.
create function meshaudit_private.kept_in_archive(p_scopes text[], p_to timestamptz, out scope text, out until timestamptz)
language sql stable set search_path = ''
as $$
  with policies as (
    select * from meshaudit_private.retention_of(p_to)
  )
  select p.scope, p.archive_until from policies p
  where p.scope = any (p_scopes) and p.scope <> '*'
    or p.scope = '*' and (p_scopes = '{}' or exists (
      select from pg_catalog.unnest(p_scopes) u (scope)
      where u.scope = '*' or not exists (select from policies o where o.scope = u.scope)))
  order by p.archive_until desc, p.scope limit 1
$$;

comment on function meshaudit_private.scopes_of(regclass) is 'The scopes of a partition''s entries.';
comment on function meshaudit_private.has_scope(regclass, text, text[]) is 'Whether a partition has an entry of a scope; for *: of none of the others.';
comment on function meshaudit_private.kept_in_database(regclass, timestamptz) is 'The scope of a partition that is kept longest, until when, and a scope that no policy is in force for.';
comment on function meshaudit_private.kept_in_archive(text[], timestamptz) is 'The scope of an archive that is kept longest, and until when.';
