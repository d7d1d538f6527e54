"""OpenTelemetry traces, by the maintained instrumentation. Where they go, and under which name, OTEL_*
says."""

from fastapi import FastAPI

from meshaudit.errors import BadArgument


def instrument(app: FastAPI) -> None:
    """Trace each request; spans are sent by OTLP over HTTP."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        raise BadArgument(f"--otel: {exc.name} is missing", 'pip install "meshaudit[otel]"') from exc
    # What OTEL_SERVICE_NAME says wins over ours.
    resource = Resource.create({SERVICE_NAME: "meshaudit"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    # A stream would be a span for each chunk that is sent.
    FastAPIInstrumentor.instrument_app(
        app,
        tracer_provider=provider,
        excluded_urls="healthz,readyz,metrics",
        exclude_spans=["send", "receive"],
    )
    app.state.tracer_provider = provider
