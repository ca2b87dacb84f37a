"""Collect the traces of the whole mesh, keep the latest, and pass them to the OTLP exporter."""
