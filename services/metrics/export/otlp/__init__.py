"""Export traces and logs of the whole mesh by OTLP over HTTP, as JSON: https://opentelemetry.io/docs/specs/otlp/."""
