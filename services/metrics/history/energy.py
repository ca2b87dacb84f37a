"""Sum up the energy of workers. Pure."""

from collections import defaultdict
from collections.abc import Iterable

from services.metrics.export import series
from services.metrics.history.chart_lines import StoredPoint
from shared.api.metrics import NodeEnergy
from shared.telemetry import host_instruments

NAMES = (host_instruments.ENERGY.name, host_instruments.ENERGY_COST.name)


def sum_up(points: Iterable[StoredPoint]) -> tuple[NodeEnergy, ...]:
    """Return the energy of each node. Every worker on a GPU or machine counts all of it: it goes to the one that counted most that day."""
    joules: dict[tuple[str, int, str], dict[str, float]] = defaultdict(dict)
    costs: dict[tuple[str, int, str], float] = {}
    for point in points:
        head = series.parse_head(point.name)
        if head is None:
            continue
        counted = (head.labels.get("device", ""), point.step, point.node)
        if head.name == NAMES[0]:
            joules[counted][head.labels.get("source", "")] = point.growth
        else:
            costs[counted] = point.growth
    chosen: dict[tuple[str, int], tuple[str, int, str]] = {}
    for counted in sorted(joules):
        chosen[counted[:2]] = max(chosen.get(counted[:2], counted), counted, key=lambda one: sum(joules[one].values()))
    found: dict[tuple[str, str], NodeEnergy] = {}
    for counted in chosen.values():
        node, whole = counted[2], sum(joules[counted].values())
        for source, amount in joules[counted].items():
            before = found.get((node, source), NodeEnergy(node, source, 0.0, None))
            cost = before.cost
            if counted in costs:
                cost = (cost or 0.0) + (costs[counted] * amount / whole if whole else 0.0)
            found[node, source] = NodeEnergy(node, source, before.joules + amount, cost)
    return tuple(found[key] for key in sorted(found))
