-- What a session's settings say about its caller: meshaudit.actor, and what a gateway passes on of its request.
--
-- Invariants
--   * identity is what the server knows: the login (the defaults of 11_ledger.sql), or, behind a gateway login, the
--     subject of the verified JWT;
--   * what a caller says about itself (meshaudit.actor, claims set by a login that is no gateway) is kept apart,
--     in claimed_identity;
--   * claims behind a gateway that name nobody, or not in a way that can be believed, never pass for the gateway's own
--     access in silence: claimed_identity then begins with 'unusable token'. No two subjects become one: a longer one than
--     fits is told by its digest, one that is no text is not believed;
--   * nothing a caller sends can make this fail, or put into the log what cannot be read back: what cannot be parsed,
--     or is not UTF-8 (the server does not check the options of a connection), is left out.

create type meshaudit_private.caller as (
  user_identity text,
  identity_source text,
  claimed_identity text,
  ip_address inet,
  user_agent text,
  request_id text
);

create function meshaudit_private.is_gateway() returns boolean
language sql stable parallel safe security invoker set search_path = ''
as $$
  select session_user = any (s.gateway_roles) from meshaudit_private.settings s
$$;

-- Text that may be stored: valid, bounded, not empty; else null.
create function meshaudit_private.clean(p_text text, p_length int) returns text
language plpgsql immutable parallel unsafe set search_path = ''
as $$
begin
  perform pg_catalog.convert_to(p_text, 'UTF8');  -- raises if it is not UTF-8
  return nullif(pg_catalog."left"(p_text, p_length), '');
exception when others then
  return null;
end
$$;

-- A text as a JSON object; null when anything is wrong with it. What is in it is UTF-8 then, and holds no NUL.
create function meshaudit_private.json_object(p_text text) returns jsonb
language plpgsql immutable parallel unsafe set search_path = ''
as $$
declare
  v_json pg_catalog.jsonb;
begin
  perform pg_catalog.convert_to(p_text, 'UTF8');
  v_json := p_text::pg_catalog.jsonb;
  return case when pg_catalog.jsonb_typeof(v_json) = 'object' then v_json end;
exception when others then
  return null;
end
$$;

-- A subject, whole. A longer one than a column should hold keeps its beginning, and its digest tells it from others that begin
-- alike; so does one that looks like such a digest, or like a pseudonym (21_pseudonyms.sql).
create function meshaudit_private.as_identity(p_subject text) returns text
language sql immutable
return case
  when p_subject = '' then null
  when pg_catalog.char_length(p_subject) <= 256 and pg_catalog.strpos(p_subject, ' sha256:') = 0
    and not pg_catalog.starts_with(p_subject, 'erasable:') then p_subject
  else pg_catalog."left"(p_subject, 180) || ' sha256:'
    || pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(p_subject, 'UTF8')), 'hex')
end;

-- A subject that may be believed: a text.
create function meshaudit_private.subject(p_claims jsonb) returns text
language sql immutable
return case when pg_catalog.jsonb_typeof(p_claims -> 'sub') = 'string' then meshaudit_private.as_identity(p_claims ->> 'sub') end;

create function meshaudit_private.header_address(p_headers jsonb, p_names text[]) returns inet
language plpgsql stable parallel unsafe set search_path = ''
as $$
declare
  v_name pg_catalog.text;
  v_value pg_catalog.text;
  v_address pg_catalog.inet;
begin
  foreach v_name in array p_names loop
    -- of a list, the last address was added by the nearest proxy; the first is the client's own word
    v_value := pg_catalog.btrim(pg_catalog.split_part(p_headers ->> v_name, ',', -1));
    if v_value <> '' then
      begin
        v_address := v_value::pg_catalog.inet;
        if pg_catalog.masklen(v_address) = (case pg_catalog.family(v_address) when 4 then 32 else 128 end) then
          return v_address;
        end if;
      exception when others then
        null;
      end;
    end if;
  end loop;
  return null;
end
$$;

-- The columns of an entry that the session's settings decide.
create function meshaudit_private.session_caller() returns meshaudit_private.caller
language plpgsql stable parallel unsafe set search_path = ''
as $$
declare
  v_caller meshaudit_private.caller;
  v_claimed constant pg_catalog.text := pg_catalog.current_setting('request.jwt.claims', true);
  v_sent constant pg_catalog.text := pg_catalog.current_setting('request.headers', true);
  v_claims pg_catalog.jsonb;
  v_headers pg_catalog.jsonb;
  v_subject pg_catalog.text;
begin
  v_caller.user_identity := session_user;
  v_caller.identity_source := 'database';
  v_caller.claimed_identity := meshaudit_private.clean(pg_catalog.current_setting('meshaudit.actor', true), 256);
  v_caller.ip_address := pg_catalog.inet_client_addr();
  if v_claimed <> '' or v_sent <> '' then
    if v_claimed <> '' then
      v_claims := meshaudit_private.json_object(v_claimed);
      v_subject := meshaudit_private.subject(v_claims);
    end if;
    if v_subject is null then
      v_subject := meshaudit_private.as_identity(meshaudit_private.clean(
        pg_catalog.current_setting('request.jwt.claim.sub', true), 100000));
    end if;
    -- a service key has no subject: then its role is who it is
    if v_subject is null and coalesce(v_claims ->> 'sub', '') = '' and pg_catalog.jsonb_typeof(v_claims -> 'role') = 'string' then
      v_subject := nullif(pg_catalog."left"(v_claims ->> 'role', 256), '');
    end if;
    if meshaudit_private.is_gateway() then
      if v_subject is not null then
        v_caller.user_identity := v_subject;
        v_caller.identity_source := 'jwt';
      elsif v_claimed <> '' then
        -- what else it says of itself stays, behind that
        v_caller.claimed_identity := pg_catalog."left"(pg_catalog.concat_ws('; ', 'unusable token'
          || coalesce(', sub ' || pg_catalog."left"((v_claims -> 'sub')::pg_catalog.text, 100), ''),
          v_caller.claimed_identity), 256);
      end if;
      if v_sent <> '' then
        v_headers := meshaudit_private.json_object(v_sent);
      end if;
      v_caller.ip_address := coalesce(
        meshaudit_private.header_address(v_headers, (select s.address_headers from meshaudit_private.settings s)),
        v_caller.ip_address);
      v_caller.user_agent := nullif(pg_catalog."left"(v_headers ->> 'user-agent', 256), '');
      v_caller.request_id := nullif(pg_catalog."left"(v_headers ->> 'x-request-id', 128), '');
    elsif v_caller.claimed_identity is null then
      v_caller.claimed_identity := v_subject;
    end if;
  end if;
  return v_caller;
end
$$;

comment on type meshaudit_private.caller is 'The columns of an entry that a session''s settings decide.';
comment on function meshaudit_private.is_gateway() is 'Whether this login''s request.* settings are believed.';
comment on function meshaudit_private.clean(text, int) is 'Text that may be stored: valid UTF-8, bounded; else null.';
comment on function meshaudit_private.json_object(text) is 'A text as a JSON object; null if it is none that can be stored.';
comment on function meshaudit_private.as_identity(text) is 'A subject as entries tell it: one that is too long, or could pass for another, by its digest.';
comment on function meshaudit_private.subject(jsonb) is 'The subject of claims, if it may be believed; one of more than 256 characters by its digest.';
comment on function meshaudit_private.header_address(jsonb, text[]) is 'The client''s address from request headers; null if none is usable.';
comment on function meshaudit_private.session_caller() is
  'Who calls and from where, by the session''s settings: request.* is believed behind a gateway, else a claim.';
