-- Periods that something is kept for.

-- No part may be negative: '1 month -29 days' counts as a day where intervals are compared, and before a time in March it
-- is less than nothing. No more than 1,000 years: else no date is left to subtract it from.
create function meshaudit_private.is_period(p_period interval) returns boolean
language sql immutable parallel safe
return p_period >= '1 day'::interval and p_period <= '1000 years'::interval
  and extract(year from p_period) >= 0 and extract(month from p_period) >= 0 and extract(day from p_period) >= 0
  and extract(hour from p_period) >= 0 and extract(minute from p_period) >= 0 and extract(second from p_period) >= 0;

comment on function meshaudit_private.is_period(interval) is 'Whether something can be kept for so long: a day to 1,000 years, no part of it negative.';
