-- Expiry: an archive whose period is over may be deleted, and the log says so first.
--
-- Invariants
--   * the entry is committed before a file is touched: what is deleted without one was removed, not expired;
--   * the manifest stays, here and in the archive: it joins the lanes on either side, and names the manifest before it;
--   * an expiry is a document that names the manifest, and the document of the expiry before it. So the newest entry, which
--     is never in an archive that has expired, speaks for all;
--   * what the database cannot know, it answers with no: a hold by secret or identity keeps every archive of its time.

-- Why an archive cannot expire now; null: nothing speaks against it.
create function meshaudit_private.why_archived(r meshaudit_private.retirements) returns text
language plpgsql stable set search_path = ''
as $$
declare
  k pg_catalog.record;
  v_hold pg_catalog.int8;
begin
  if r.restored then
    return 'its entries are back in the database';
  end if;
  if not exists (select from meshaudit_private.retirements t where t.number > r.number) then
    return 'it is the newest';
  end if;
  select * into k from meshaudit_private.kept_in_archive(r.scopes, r.to_time);
  if k.until = 'infinity' then
    return pg_catalog.format('scope %s is kept for ever', k.scope);
  elsif k.until > pg_catalog.clock_timestamp() then
    return pg_catalog.format('scope %s is kept until %s', k.scope, pg_catalog.to_char(k.until at time zone 'UTC', 'YYYY-MM-DD'));
  end if;
  select h.hold into v_hold from meshaudit_private.holds h
    where coalesce(h.from_time < r.to_time, true) and coalesce(h.to_time > r.from_time, true)
      and (h.scope is null or h.scope = any (r.scopes))
    order by h.hold limit 1;
  if v_hold is not null then
    return pg_catalog.format('legal hold %s may be on entries of it', v_hold);
  end if;
  return null;
end
$$;

create function meshaudit.expire_archive(name text) returns text
language plpgsql volatile security definer set search_path = ''
as $$
declare
  r meshaudit_private.retirements;
  v_why pg_catalog.text;
  v_manifest pg_catalog.text;
  v_document pg_catalog.text;
  v_lane pg_catalog.int4;
  v_seq pg_catalog.int8;
begin
  if pg_catalog.current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'expiring takes a READ COMMITTED transaction' using errcode = 'MA005',
      hint = 'Run it in autocommit, or in a transaction of isolation level READ COMMITTED.';
  end if;
  lock table meshaudit_private.retirements in share row exclusive mode;
  lock table meshaudit_private.holds, meshaudit_private.retention in share mode nowait;
  select e.document into v_document from meshaudit_private.expiries e where e.partition = name;
  if found then
    return v_document;
  end if;
  select * into r from meshaudit_private.retirements t where t.partition = name;
  if r.number is null then
    raise exception 'no archive of "%"', pg_catalog."left"(name, 100) using errcode = 'MA005',
      hint = 'select * from meshaudit.retirements() lists them.';
  end if;
  v_why := meshaudit_private.why_archived(r);
  if v_why is not null then
    raise exception 'the archive of % cannot expire: %', r.partition, v_why using errcode = 'MA005',
      hint = 'select * from meshaudit.retention_plan() says of each archive when it can.';
  end if;

  v_manifest := pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(r.manifest, 'UTF8')), 'hex');
  -- spelt as a manifest is: keys sorted, no spaces, one newline
  v_document := pg_catalog.format(E'{"format":"meshaudit expiry v1","ledger_id":"%s","manifest":"%s","partition":"%s","previous":%s}\n',
    (select s.ledger_id from meshaudit_private.settings s), v_manifest, r.partition,
    coalesce((select pg_catalog.concat('"', pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(e.document, 'UTF8')), 'hex'), '"')
      from meshaudit_private.expiries e order by e.number desc limit 1), 'null'));
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope)
    values (pg_catalog.concat_ws(' ', r.partition, v_manifest,
      pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(v_document, 'UTF8')), 'hex')),
      'write', 'delete', 'granted', 'meshaudit.expiry', '*')
    returning lane, seq into v_lane, v_seq;
  insert into meshaudit_private.expiries (partition, document, lane, seq) values (r.partition, v_document, v_lane, v_seq);
  return v_document;
exception when lock_not_available then
  raise exception 'a hold or a policy is being changed just now' using errcode = '55P03', hint = 'Try again in a moment; nothing was done.';
end
$$;
revoke all on function meshaudit.expire_archive(text) from public;
grant execute on function meshaudit.expire_archive(text) to meshaudit_operator;

create function meshaudit_private.expiries(p_role text)
returns table (partition text, document text, lane int, seq bigint, expired_at timestamptz)
language plpgsql stable security definer set search_path = ''
as $$
begin
  perform meshaudit_private.require_whole_log(p_role);
  return query
    select e.partition, e.document, e.lane, e.seq, e.expired_at from meshaudit_private.expiries e order by e.number;
end
$$;
revoke all on function meshaudit_private.expiries(text) from public;
grant execute on function meshaudit_private.expiries(text) to meshaudit_auditor, meshaudit_operator;

create function meshaudit.expiries()
returns table (partition text, document text, lane int, seq bigint, expired_at timestamptz)
language sql stable security invoker
begin atomic
  select e.partition, e.document, e.lane, e.seq, e.expired_at from meshaudit_private.expiries(current_user) e;
end;
revoke all on function meshaudit.expiries() from public;
grant execute on function meshaudit.expiries() to meshaudit_auditor, meshaudit_operator;

comment on function meshaudit_private.why_archived(meshaudit_private.retirements) is 'Why an archive cannot expire now; null if it can.';
comment on function meshaudit.expire_archive(text) is
  'Records that an archive''s period is over, as a delete of meshaudit.expiry that names the manifest and the document that this returns, to be written beside the manifest. From then on the Parquet file may be deleted; the manifest stays. Again: the same document. Raises MA005 while a policy or a legal hold keeps the archive, or it is restored or the newest; 55P03 while those are being changed.';
comment on function meshaudit_private.expiries(text) is 'meshaudit.expiries(), for a role.';
comment on function meshaudit.expiries() is
  'Archives that have expired, in that order: the document, and the lane and seq of the entry that records it. Raises MA001 to an auditor of a part of the log.';
