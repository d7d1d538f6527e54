"""A stand-in for PostgREST that sends the database what PostgREST sends, for where there is none to run.

It takes the requests that supabase-js makes of tables, views and functions, and follows the source of
PostgREST 12.2 to 14: how the schema is read, what is sent in which order, how answers and errors become
HTTP.

Not replayed: HTTP itself, JWT verification, CSV and other media types, aggregates, `and`/`or` trees,
full-text operators, PUT, OpenAPI.
"""

from tests.postgrest.rest import Answer, Caller, Rest

__all__ = ["Answer", "Caller", "Rest"]
