"""Sum up the energy of workers. Pure."""

from collections import defaultdict
from collections.abc import Iterable

from services.metrics.export import series
from services.metrics.history.chart_lines import StoredPoint
from shared.api.metrics import NodeEnergy
from shared.telemetry.host_instruments import HostInstruments

NAMES = (HostInstruments.energy.name, HostInstruments.energy_cost.name)


def sum_up(points: Iterable[StoredPoint]) -> tuple[NodeEnergy, ...]:
    """Return the energy of each node. Every worker on a GPU or machine counts all of it: it goes to the one that counted most that day."""
    counted: dict[tuple[str, int], dict[str, NodeEnergy]] = defaultdict(dict)
    for point in points:
        if (head := series.parse_head(point.name)) is None:
            continue
        of_device = counted[head.labels.get("device", ""), point.step]
        is_cost = head.name == HostInstruments.energy_cost.name
        joules, cost = (0.0, point.growth) if is_cost else (point.growth, None)
        one = NodeEnergy(point.node, joules, cost, () if is_cost else (head.labels.get("source", ""),))
        of_device[point.node] = of_device[point.node] + one if point.node in of_device else one
    found: dict[str, NodeEnergy] = {}
    for of_device in counted.values():
        most = max(of_device.values(), key=lambda one: (one.joules, one.node))
        found[most.node] = found[most.node] + most if most.node in found else most
    return tuple(found[node] for node in sorted(found))
