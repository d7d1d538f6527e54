-- Changing a setting is itself an entry.

create function meshaudit.set_setting(name text, value text) returns void
language plpgsql volatile security definer set search_path = ''
as $$
begin
  if name not in ('gateway_roles', 'api_roles', 'address_headers', 'partition_interval', 'partitions_ahead',
      'vault_mode', 'require_journal', 'journal_flush', 'feed_keep', 'realtime_roles', 'keep_in_database',
      'erasable_identities') or name is null then
    raise exception 'no setting named "%"', pg_catalog."left"(name, 100) using errcode = 'MA005',
      hint = 'Settings: gateway_roles, api_roles, address_headers (comma-separated lists), partition_interval (month, week or day), partitions_ahead (1 to 400), vault_mode (ledger or journal), require_journal, journal_flush (true or false), feed_keep (1000 to 100000000), realtime_roles (a list), keep_in_database (an interval of a day to 1000 years), erasable_identities (true or false).';
  end if;
  begin
    case name
      when 'gateway_roles' then
        update meshaudit_private.settings set gateway_roles = meshaudit_private.list(value) where singleton;
      when 'api_roles' then
        update meshaudit_private.settings set api_roles = meshaudit_private.list(value) where singleton;
      when 'address_headers' then
        update meshaudit_private.settings set address_headers = meshaudit_private.list(pg_catalog.lower(value)) where singleton;
      when 'partition_interval' then
        update meshaudit_private.settings set partition_interval = value where singleton;
      when 'partitions_ahead' then
        update meshaudit_private.settings set partitions_ahead = value::pg_catalog.int4 where singleton;
      when 'feed_keep' then
        update meshaudit_private.settings set feed_keep = value::pg_catalog.int8 where singleton;
      when 'realtime_roles' then
        update meshaudit_private.settings set realtime_roles = coalesce(meshaudit_private.list(value), '{}') where singleton;
      when 'vault_mode' then
        update meshaudit_private.journal set vault_mode = value where singleton;
      when 'require_journal' then
        update meshaudit_private.journal set required = value::pg_catalog.bool where singleton;
      when 'journal_flush' then
        update meshaudit_private.journal set flush = value::pg_catalog.bool where singleton;
      when 'keep_in_database' then
        update meshaudit_private.settings set keep_in_database = value::pg_catalog.interval where singleton;
      when 'erasable_identities' then
        update meshaudit_private.settings set erasable_identities = value::pg_catalog.bool where singleton;
    end case;
  exception when check_violation or not_null_violation or data_exception then
    raise exception 'bad value for setting "%"', name using errcode = 'MA005',
      hint = 'Lists are comma-separated; partition_interval is month, week or day; partitions_ahead is 1 to 400; vault_mode is ledger or journal; require_journal and journal_flush are true or false; feed_keep is 1000 to 100000000; keep_in_database is a day to 1000 years; erasable_identities is true or false.';
  end;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope)
    values (name, 'write', 'update', 'granted', 'meshaudit.settings', '*');
end
$$;
revoke all on function meshaudit.set_setting(text, text) from public;

create function meshaudit_private.list(p_value text) returns text[]
language sql immutable set search_path = ''
as $$
  select pg_catalog.array_agg(pg_catalog.btrim(e)) from pg_catalog.string_to_table(p_value, ',') e
  where pg_catalog.btrim(e) <> ''
$$;

create function meshaudit.get_setting(name text) returns text
language sql stable security definer set search_path = ''
as $$
  select case when j.v ~ '^[{]' then pg_catalog.array_to_string(j.v::pg_catalog.text[], ',') else j.v end
  from meshaudit_private.settings s, meshaudit_private.journal k,
    lateral (values ('gateway_roles', s.gateway_roles::pg_catalog.text), ('api_roles', s.api_roles::pg_catalog.text),
      ('address_headers', s.address_headers::pg_catalog.text), ('partition_interval', s.partition_interval),
      ('partitions_ahead', s.partitions_ahead::pg_catalog.text), ('feed_keep', s.feed_keep::pg_catalog.text),
      ('realtime_roles', s.realtime_roles::pg_catalog.text), ('ledger_id', s.ledger_id::pg_catalog.text),
      ('vault_mode', k.vault_mode), ('require_journal', k.required::pg_catalog.text),
      ('journal_flush', k.flush::pg_catalog.text),
      ('keep_in_database', s.keep_in_database::pg_catalog.text),
      ('erasable_identities', s.erasable_identities::pg_catalog.text)) j (n, v)
  where j.n = name
$$;
revoke all on function meshaudit.get_setting(text) from public;
grant execute on function meshaudit.get_setting(text) to meshaudit_auditor, meshaudit_operator;

comment on function meshaudit_private.list(text) is 'A comma-separated list as an array; null if it is empty.';
comment on function meshaudit.set_setting(text, text) is
  'Changes a setting: gateway_roles, api_roles, address_headers (comma-separated), partition_interval (month, week, day), partitions_ahead (1 to 400), vault_mode (ledger, journal), require_journal, journal_flush (true, false), feed_keep (events), realtime_roles (logins), keep_in_database (an interval of a day to 1000 years), erasable_identities (true, false). Recorded as an update of meshaudit.settings. Raises MA005 on a bad name or value.';
comment on function meshaudit.get_setting(text) is 'A setting''s value as text (or ledger_id); null if there is none of that name.';
