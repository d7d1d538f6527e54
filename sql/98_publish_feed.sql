-- Adds the feed to supabase_realtime where that is there, as the installer, while it is a member of the owner.

do $$
begin
  execute format('set local role %I', current_setting('meshaudit.installer'));
end
$$;

do $$
begin
  perform meshaudit.publish_feed();
exception when insufficient_privilege or object_not_in_prerequisite_state or invalid_parameter_value or feature_not_supported then
  raise notice 'the feed is not in the publication supabase_realtime: %', sqlerrm
    using hint = 'As who owns it and has installed meshaudit: select meshaudit.publish_feed();';
end
$$;

set local role meshaudit_owner;
