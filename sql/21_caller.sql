-- What a session's settings say about its caller: meshaudit.actor, and what a gateway passes on of its request.
--
-- Invariants
--   * identity is what the server knows: the login (the defaults of 11_ledger.sql), or, behind a gateway login, the
--     subject of the verified JWT;
--   * what a caller says about itself (meshaudit.actor, claims set by a login that is no gateway) is kept apart,
--     in claimed_identity;
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

-- A JSON object's member as text; null when anything is wrong with it.
create function meshaudit_private.member(p_json text, p_name text) returns text
language plpgsql immutable parallel unsafe set search_path = ''
as $$
begin
  perform pg_catalog.convert_to(p_json, 'UTF8');
  return p_json::pg_catalog.jsonb ->> p_name;
exception when others then
  return null;
end
$$;

create function meshaudit_private.header_address(p_headers text, p_names text[]) returns inet
language plpgsql stable parallel unsafe set search_path = ''
as $$
declare
  v_name pg_catalog.text;
  v_value pg_catalog.text;
  v_address pg_catalog.inet;
begin
  foreach v_name in array p_names loop
    -- of a list, the last address was added by the nearest proxy; the first is the client's own word
    v_value := pg_catalog.btrim(pg_catalog.split_part(meshaudit_private.member(p_headers, v_name), ',', -1));
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
  v_claims constant pg_catalog.text := pg_catalog.current_setting('request.jwt.claims', true);
  v_headers constant pg_catalog.text := pg_catalog.current_setting('request.headers', true);
  v_subject pg_catalog.text;
begin
  v_caller.user_identity := session_user;
  v_caller.identity_source := 'database';
  v_caller.claimed_identity := meshaudit_private.clean(pg_catalog.current_setting('meshaudit.actor', true), 256);
  v_caller.ip_address := pg_catalog.inet_client_addr();
  if v_claims <> '' or v_headers <> '' then
    -- a service key has no subject: then its role is who it is
    v_subject := coalesce(
      meshaudit_private.clean(meshaudit_private.member(v_claims, 'sub'), 256),
      meshaudit_private.clean(pg_catalog.current_setting('request.jwt.claim.sub', true), 256),
      meshaudit_private.clean(meshaudit_private.member(v_claims, 'role'), 256));
    if meshaudit_private.is_gateway() then
      if v_subject is not null then
        v_caller.user_identity := v_subject;
        v_caller.identity_source := 'jwt';
      end if;
      v_caller.ip_address := coalesce(
        meshaudit_private.header_address(v_headers, (select s.address_headers from meshaudit_private.settings s)),
        v_caller.ip_address);
      v_caller.user_agent := meshaudit_private.clean(meshaudit_private.member(v_headers, 'user-agent'), 256);
      v_caller.request_id := meshaudit_private.clean(meshaudit_private.member(v_headers, 'x-request-id'), 128);
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
comment on function meshaudit_private.member(text, text) is 'A member of a JSON object as text; null if unusable.';
comment on function meshaudit_private.header_address(text, text[]) is 'The client''s address from request headers; null if none is usable.';
comment on function meshaudit_private.session_caller() is
  'Who calls and from where, by the session''s settings: request.* is believed behind a gateway, else a claim.';
