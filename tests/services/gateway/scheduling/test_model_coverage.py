import pytest

from services.gateway.scheduling import model_coverage
from services.gateway.scheduling.model_coverage import MISSED_SECONDS, ModelCoverage
from shared.protocol.directory import ModelOffer
from shared.types import ModelName, NodeId, Role
from tests.services.gateway.fakes import FakeDirectory, node_id

LLAMA = ModelName("llama3")


class Mesh:
    def __init__(self) -> None:
        self.workers, self.coverage, self.now = FakeDirectory(), ModelCoverage(), 0.0
        self.kept_away: set[NodeId] = set()
        self.workers.worker(1, "phi", "llama3")
        self.workers.worker(2, "phi")

    def count(self, *, after: float = 2.0) -> dict[str, int]:
        self.now += after
        return dict(self.coverage.count(self.workers.entries(Role.WORKER), self.kept_away.__contains__, self.now))


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


def test_each_model_counts_the_workers_that_could_serve_it(mesh: Mesh) -> None:
    assert mesh.count() == {"phi": 2, "llama3": 1}
    mesh.workers.worker(2, "phi", not_ready="paused by its owner")
    assert mesh.count() == {"phi": 1, "llama3": 1}
    mesh.workers.worker(2, "phi", draining=True)
    assert mesh.count() == {"phi": 1, "llama3": 1}
    mesh.workers.worker(2, "phi")
    mesh.kept_away.add(node_id(1))
    assert mesh.count() == {"phi": 1, "llama3": 0}


def test_a_model_without_workers_is_reported_for_a_day(mesh: Mesh) -> None:
    mesh.count()
    mesh.workers.mark_gone(node_id(1), "silent for 6 s")
    assert mesh.count() == {"phi": 1, "llama3": 0}
    assert mesh.count(after=MISSED_SECONDS - 10) == {"phi": 1, "llama3": 0}
    assert mesh.count(after=20) == {"phi": 1}


def test_a_model_whose_engine_failed_is_reported_as_missing(mesh: Mesh) -> None:
    mesh.count()
    failed = ModelOffer(LLAMA, 2048, ready=False)
    mesh.workers.worker(1, "phi")
    (entry,) = [entry for entry in mesh.workers.entries() if entry.node == node_id(1)]
    broken = entry.announcement.__class__(
        Role.WORKER, node_id(1), "1", entry.announcement.started_at, (*entry.announcement.models, failed), entry.announcement.load
    )
    mesh.workers.apply_announcement(broken, "nats")
    assert mesh.count() == {"phi": 2, "llama3": 0}


def test_a_model_removed_from_a_healthy_worker_is_not_reported(mesh: Mesh) -> None:
    mesh.count()
    mesh.workers.worker(1, "phi")
    assert mesh.count() == {"phi": 2}


def test_a_model_is_reported_as_missing_while_its_worker_restarts(mesh: Mesh) -> None:
    mesh.count()
    mesh.workers.worker(1, not_ready="no model is ready yet")
    assert mesh.count() == {"phi": 1, "llama3": 0}


def test_the_number_of_counted_models_is_bounded(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_coverage, "MAX_MODELS", 3)
    mesh.count()
    mesh.workers.worker(3, *(f"m{number}" for number in range(10)))
    counts = mesh.count()
    assert (len(counts), counts["phi"], counts["llama3"]) == (3, 2, 1)
