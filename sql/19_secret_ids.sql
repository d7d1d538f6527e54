-- How long an entry's secret_id may be.
--
-- It must fit into the index ledger_secret (2,704 bytes a row) beside any identity and any scope, of up to 1,024 bytes each.
-- Else whoever gives a secret a long name could keep the sealer, or others, from writing an entry.

-- STABLE, as convert_to() is: declared IMMUTABLE it would not be inlined.
create function meshaudit_private.bounded(p_secret_id text) returns text
language sql stable parallel safe
return case
  when pg_catalog.octet_length(pg_catalog."left"(p_secret_id, 512)) <= 600 then pg_catalog."left"(p_secret_id, 512)
  else pg_catalog."left"(p_secret_id, 100) || ' sha256:'
    || pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(p_secret_id, 'UTF8')), 'hex')
end;
comment on function meshaudit_private.bounded(text) is 'A secret_id that the indexes take: at most 512 characters, else its digest.';
