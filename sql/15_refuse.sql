-- Refusing, so that a caller behind PostgREST gets the right HTTP status: it has one for the SQLSTATEs that it knows.
--
-- In one of its requests the error is its own SQLSTATE, PGRST: code, message and hint as JSON in the message, the status
-- in the detail. Elsewhere it is ours.

create function meshaudit_private.refuse(p_code text, p_message text, p_hint text) returns void
language plpgsql volatile set search_path = ''
as $$
begin
  if coalesce(pg_catalog.current_setting('request.method', true), '') = '' then
    raise exception using errcode = p_code, message = p_message, hint = p_hint;
  end if;
  raise exception using errcode = 'PGRST',
    message = pg_catalog.json_build_object(
      'code', p_code, 'message', p_message, 'details', null, 'hint', p_hint)::pg_catalog.text,
    detail = pg_catalog.json_build_object(
      'status', (case p_code when 'MA002' then 503 when 'MA004' then 404 when 'MA005' then 400 else 403 end),
      'headers', pg_catalog.json_build_object())::pg_catalog.text;
end
$$;

comment on function meshaudit_private.refuse(text, text, text) is
  'Raises an error of ours; in a request of PostgREST as HTTP 403 (MA001, MA003), 503 (MA002), 404 (MA004) or 400 (MA005).';
