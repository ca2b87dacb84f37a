"""Fixtures for scaling on PostgreSQL, like those for alerts."""

from tests.services.metrics.alerting.conftest import mesh, replicas, store

__all__ = ["mesh", "replicas", "store"]
