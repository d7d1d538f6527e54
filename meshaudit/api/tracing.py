"""OpenTelemetry traces, by the maintained instrumentation. Where they go, and under which name, OTEL_*
says.

A trace says which route was asked, when and for how long; not for what. Filters are the names of people and
of secrets, and a query may by mistake hold a token: no span has it.
"""

from typing import Any

from fastapi import FastAPI

from meshaudit.errors import BadArgument

# With the query: by the old names and by the new ones.
_WITH_QUERY = ("http.url", "http.target", "url.full")


def _exporter() -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _without_query(span: Any, _scope: dict[str, Any]) -> None:
    """Called when a span has begun, and before anybody else sees it."""
    if not span.is_recording():
        return
    known = getattr(span, "attributes", None) or {}
    for name in _WITH_QUERY:
        if name in known:
            span.set_attribute(name, str(known[name]).partition("?")[0])
    if "url.query" in known:
        span.set_attribute("url.query", "")


def instrument(app: FastAPI) -> None:
    """Trace each request; spans are sent by OTLP over HTTP."""
    try:
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _exporter()
    except ImportError as exc:
        raise BadArgument(f"--otel: {exc.name} is missing", 'pip install "meshaudit[otel]"') from exc
    # What OTEL_SERVICE_NAME says wins over ours.
    resource = Resource.create({SERVICE_NAME: "meshaudit"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    # A stream would be a span for each chunk that is sent.
    FastAPIInstrumentor.instrument_app(
        app,
        tracer_provider=provider,
        server_request_hook=_without_query,
        excluded_urls="healthz,readyz,metrics",
        exclude_spans=["send", "receive"],
    )
    app.state.tracer_provider = provider
