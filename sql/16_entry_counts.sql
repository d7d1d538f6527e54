-- How many entries of each kind have passed through the feed: for metrics, which must not count a ledger of any size.

create table meshaudit_private.entry_counts (
  access_type text not null,
  operation text not null,
  outcome text not null,
  entries bigint not null,
  primary key (access_type, operation, outcome)
) with (fillfactor = 50);

comment on table meshaudit_private.entry_counts is 'Entries that the feed has got, by kind; kept by the feed''s trigger count_entries.';

alter table meshaudit_private.entry_counts enable row level security;
