"""How a gateway uses another gateway's reports. ``test_queue_sharing`` checks how fair a whole mesh is."""

from uuid import UUID

from services.gateway.facts.placements import ANYWHERE
from services.gateway.facts.worker_requirements import QueuedKind
from services.gateway.scheduling.fair_queue import ModelQueue
from services.gateway.scheduling.peer_queues import (
    DELEGATION_SECONDS,
    SILENT_SECONDS,
    Charge,
    PeerQueues,
    PeerTicket,
    PeerWaiting,
    QueuedRequest,
    QueueReport,
)
from shared.types import ModelName, TenantId
from tests.services.gateway.fakes import node_id

MODEL, ADA, WORKER = ModelName("m"), TenantId(UUID(int=1)), node_id(1)
ONE_WAITS = QueueReport("a", MODEL, (PeerWaiting(ADA, 1, 0, QueuedKind(ADA, ANYWHERE)),), whole=True)


class Gateway:
    """The younger of two gateways, in whose queue a request of the older one waits."""

    def __init__(self) -> None:
        self.model_queue: ModelQueue[QueuedRequest] = ModelQueue()
        self.peers = PeerQueues("b", MODEL, self.model_queue)
        self.peers.apply_report(ONE_WAITS, 0.0)

    @property
    def waiting(self) -> list[QueuedRequest]:
        return self.model_queue.queue.order()

    @property
    def charged(self) -> float:
        return self.model_queue.queue.counter_of(ADA)

    def delegate(self, now: float) -> float:
        """Offer the waiting request a slot; return its expected cost."""
        (ticket,) = self.waiting
        assert isinstance(ticket, PeerTicket)
        self.peers.delegate_slot(ticket, WORKER, now, is_ours=True)
        assert not self.waiting
        return self.model_queue.cost(ticket.requirements)


def test_a_delegated_slot_that_is_not_used_costs_its_tenant_nothing() -> None:
    gateway = Gateway()
    assert gateway.delegate(0.0) == gateway.charged > 0
    assert gateway.peers.expire(DELEGATION_SECONDS - 0.01) == []
    assert gateway.peers.expire(DELEGATION_SECONDS) == [WORKER]
    assert gateway.charged == 0


def test_a_delegated_slot_that_is_used_is_charged_once() -> None:
    gateway = Gateway()
    gateway.delegate(0.0)
    gateway.peers.apply_report(QueueReport("a", MODEL, charges=(Charge(ADA, 7.0),)), 0.1)
    assert gateway.charged == 7
    gateway.peers.expire(DELEGATION_SECONDS)
    assert gateway.charged == 7


def test_the_requests_of_a_silent_peer_hold_no_turns() -> None:
    gateway = Gateway()
    gateway.peers.expire(SILENT_SECONDS)
    assert len(gateway.waiting) == 1
    gateway.peers.expire(SILENT_SECONDS + 0.1)
    assert not gateway.waiting
    assert not gateway.peers.has_peers
