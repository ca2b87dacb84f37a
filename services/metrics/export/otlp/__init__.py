"""The way out by OTLP over HTTP, for traces and logs of the whole mesh: https://opentelemetry.io/docs/specs/otlp/, in its JSON form."""
