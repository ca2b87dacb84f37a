"""Fixtures for scaling on PostgreSQL, as those of the alerts."""

from tests.services.metrics.alerting.conftest import mesh, replicas, store

__all__ = ["mesh", "replicas", "store"]
