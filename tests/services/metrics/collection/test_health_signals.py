"""Health signals from successive collections of metrics."""

from datetime import UTC, datetime, timedelta

import pytest

from services.metrics.collection import health_signals
from services.metrics.collection.health_signals import CertificateSignal, HealthSignalReader
from services.metrics.export import prometheus_merge
from services.metrics.history import samples
from services.metrics.history.samples import Sample
from shared.telemetry.metrics_registry import Metrics

START = datetime(2026, 1, 1, tzinfo=UTC)
WORKER = "UWORKER00000" + "X" * 44


class Mesh:
    """One gateway with counters, and a reader that reads them every 15 s."""

    def __init__(self) -> None:
        self.gateway, self.worker = Metrics("gateway"), Metrics("inference")
        self.reader = HealthSignalReader()
        self.now = START

    def look(self, *, gateway_is_there: bool = True) -> health_signals.HealthSignals:
        self.now += timedelta(seconds=15)
        sources = [prometheus_merge.MetricSource(self.worker.render(), {"service": "inference", "node": WORKER[:12]})]
        if gateway_is_there:
            sources.append(prometheus_merge.MetricSource(self.gateway.render(), {"service": "gateway", "node": "UG"}))
        self.reader.take(
            samples.read_samples(prometheus_merge.render(prometheus_merge.Merger().merge(sources)), health_signals.SERIES),
            self.now,
        )
        return self.reader.signals(self.now)


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


def test_certificates_are_read_with_the_age_of_their_revocation_list(mesh: Mesh) -> None:
    assert mesh.look().certificates == ()
    mesh.gateway.certificate_seconds_left.set(3600)
    mesh.gateway.revocation_list_age.set(700)
    mesh.worker.certificate_seconds_left.set(-5)
    found = sorted(mesh.look().certificates, key=lambda one: one.holder)
    assert found == [CertificateSignal("gateway UG", 3600, 700), CertificateSignal(f"inference {WORKER[:12]}", -5, 0)]
    assert [(one.ends_soon, one.has_old_list) for one in found] == [(True, True), (True, False)]


def test_queue_counts_as_moving_when_a_request_starts(mesh: Mesh) -> None:
    mesh.gateway.queue_depth.labels(model="llama3").set(2)
    # The gateway already counted what waits at the worker.
    mesh.worker.queue_depth.labels(model="llama3").set(9)
    (queue,) = mesh.look().queues
    first = mesh.now
    assert (queue.model, queue.waiting, queue.moved_at) == ("llama3", 2, first)
    mesh.gateway.queue_depth.labels(model="llama3").set(3)
    mesh.look()
    assert [one.moved_at for one in mesh.look().queues] == [first]
    mesh.gateway.queue_wait_seconds.labels(model="llama3").observe(20)
    assert [one.moved_at for one in mesh.look().queues] == [mesh.now]
    mesh.gateway.queue_depth.labels(model="llama3").set(0)
    assert mesh.look().queues == ()
    mesh.gateway.queue_depth.labels(model="llama3").set(1)
    assert [one.moved_at for one in mesh.look().queues] == [mesh.now]


def test_longest_queues_are_shown(mesh: Mesh) -> None:
    for number in range(health_signals.MAX_QUEUES + 5):
        mesh.gateway.queue_depth.labels(model=f"m{number}").set(number + 1)
    queues = mesh.look().queues
    assert (len(queues), queues[0].waiting, queues[-1].waiting) == (health_signals.MAX_QUEUES, health_signals.MAX_QUEUES + 5, 6)


def test_wrong_count_is_reported_for_an_hour(mesh: Mesh) -> None:
    mesh.look()
    mesh.gateway.wrong_counts.labels(node=WORKER).inc(2)
    assert mesh.look().catches == {WORKER[:12]: 2}
    mesh.now += timedelta(minutes=30)
    mesh.gateway.wrong_counts.labels(node=WORKER).inc()
    assert mesh.look().catches == {WORKER[:12]: 3}
    mesh.now += timedelta(minutes=30)
    assert mesh.look().catches == {WORKER[:12]: 1}
    mesh.now += timedelta(minutes=31)
    assert mesh.look().catches == {}


def test_counts_before_the_first_sample_are_ignored(mesh: Mesh) -> None:
    mesh.gateway.wrong_counts.labels(node=WORKER).inc(7)
    assert mesh.look(gateway_is_there=False).catches == {}
    assert mesh.look().catches == {}
    mesh.look(gateway_is_there=False)
    assert mesh.look().catches == {}
    mesh.gateway.wrong_counts.labels(node=WORKER).inc()
    assert mesh.look().catches == {WORKER[:12]: 1}


def test_restarted_gateway_counts_from_zero(mesh: Mesh) -> None:
    mesh.gateway.wrong_counts.labels(node=WORKER).inc(7)
    mesh.look()
    mesh.gateway = Metrics("gateway")
    mesh.look()
    mesh.gateway.wrong_counts.labels(node=WORKER).inc(2)
    assert mesh.look().catches == {WORKER[:12]: 2}


def test_worker_cannot_report_counts_or_queues_of_others(mesh: Mesh) -> None:
    mesh.look()
    mesh.worker.wrong_counts.labels(node="UOTHER").inc(5)
    mesh.worker.queue_depth.labels(model="llama3").set(5)
    found = mesh.look()
    assert (found.catches, found.queues) == ({}, ())


def test_gateway_with_very_many_workers_uses_bounded_memory(mesh: Mesh) -> None:
    mesh.look()
    for number in range(3):
        samples = [
            Sample("ai_platform_wrong_counts_total", (("exported_node", f"{number}-{n}"), ("node", "UG"), ("service", "gateway")), 1.0)
            for n in range(5000)
        ]
        mesh.reader.take(samples, mesh.now)
        mesh.now += timedelta(hours=2)
        assert mesh.reader.signals(mesh.now).catches == {}
    assert len(mesh.reader._catches._totals) <= 10_000
