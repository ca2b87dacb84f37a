"""One round of a gateway that places 200 deployments on 100 workers: in an empty mesh, in one that has all, and after many refusals."""

import time

from bench import report
from bench.report import Options, Rows
from services.gateway.models import placement_plan
from services.gateway.models.placement_plan import Held, Machine, Refusals, Wanted
from shared.types import ModelName, NodeId

DEPLOYMENTS, WORKERS, ROOMS = 200, 100, 5
MAX_MS = 50.0


def _wanted() -> list[Wanted]:
    """Return deployments of each form: some copies, on labels, on machines, and on all machines of a room."""
    forms = (
        {"copies": 2}, {"copies": 3, "labels": {"gpu": "yes"}}, {"copies": 1, "nodes": ("U00", "U01")},
        {"copies": None, "labels": {"room": "1"}},
    )  # fmt: skip
    blank = {"labels": {}, "nodes": (), "loads": True}
    return [Wanted(name=ModelName(f"model-{number}"), **(blank | forms[number % len(forms)])) for number in range(DEPLOYMENTS)]  # type: ignore[arg-type]


def _machines(held: dict[NodeId, dict[ModelName, Held]]) -> list[Machine]:
    machines = []
    for number in range(WORKERS):
        node = NodeId(f"U{number:03}{'A' * 52}")
        labels, has = {"gpu": "yes" if number % 2 else "no", "room": str(number % ROOMS)}, held.get(node, {})
        machines.append(Machine(node, labels, accepts=number % 10 > 0, held=has, assigned=tuple(has), models=len(has)))
    return machines


def _round(wanted: list[Wanted], machines: list[Machine], refusals: Refusals) -> tuple[placement_plan.Action, ...]:
    return placement_plan.plan([placement_plan.assign(each, machines, refusals) for each in wanted], machines)


async def measure(rows: Rows, _shared: None, options: Options) -> None:
    wanted, empty = _wanted(), _machines({})
    held: dict[NodeId, dict[ModelName, Held]] = {}
    for action in _round(wanted, empty, {}):
        held.setdefault(action.node, {})[action.name] = Held.LOADED
    refusals = {(machine.node, each.name): "no room" for machine in empty for each in wanted[::2]}
    full = _machines(held)
    assert not _round(wanted, full, {}), "nothing moves where all is in place"
    for state, machines, refused in (("none is there", empty, {}), ("all are there", full, {}), ("half was refused", empty, refusals)):
        spent = []
        for _ in range(options.rounds):
            began = time.thread_time()
            _round(wanted, machines, refused)
            spent.append(1000 * (time.thread_time() - began))
        claim = f"a round of {DEPLOYMENTS} deployments × {WORKERS} workers, {state}, p95"
        rows.alone(claim, report.percentile(spent, 0.95), "ms", at_most=MAX_MS)
