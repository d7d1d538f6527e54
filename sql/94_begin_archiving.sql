-- One archiver at a time: two would overwrite each other's files.

create function meshaudit.begin_archiving() returns void
language plpgsql volatile security definer set search_path = '' set lock_timeout = '3s'
as $$
begin
  -- Conflicts with itself alone; inserts of a retirement go on. What is locked hardly matters: an advisory lock could be
  -- taken by anybody.
  lock table meshaudit_private.retired_runs in share update exclusive mode;
exception
  when lock_not_available then
    raise exception 'another archiver is at work on this ledger' using errcode = '55P03',
      hint = 'One at a time. Run it again when the other has ended.';
end
$$;
revoke all on function meshaudit.begin_archiving() from public;
grant execute on function meshaudit.begin_archiving() to meshaudit_operator;

comment on function meshaudit.begin_archiving() is
  'Until the end of the transaction no other archiver can begin. Raises 55P03 if one is at work.';
