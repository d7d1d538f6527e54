"""The HTTP API of `meshaudit serve`.

A gateway, as PostgREST is one: it checks a caller's token, runs the request as the token's role with the
token's
claims, and leaves it to row security what that shows. It has no power of its own.

    app       puts it together       settings  what is configured      server   the socket, signals
    auth      tokens to callers      gate      callers to transactions limits   sizes, numbers, headers
    params    what a query says      problems  what goes wrong         models   what the OpenAPI document
    shows
    logs, export, stream, health     the routes
    metrics, tracing                 what is known about the server itself
"""
