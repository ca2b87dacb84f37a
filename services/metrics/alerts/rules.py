"""The list: every alert rule, and every series that Prometheus records for them."""

from collections.abc import Mapping
from types import MappingProxyType

from services.metrics.alerts import expressions, machine_rules, objectives, request_rules, trust_rules
from services.metrics.alerts.expressions import Recorded
from services.metrics.alerts.rule import Rule

#: In the order of the reference page; a group is a file of Prometheus rules.
GROUPS: Mapping[str, tuple[Rule, ...]] = MappingProxyType(
    {
        "objectives": objectives.RULES,
        "requests": request_rules.RULES,
        "trust": trust_rules.RULES,
        "machines": machine_rules.RULES,
    }
)
ALL: tuple[Rule, ...] = tuple(rule for rules in GROUPS.values() for rule in rules)

#: Without repetitions; a burn alert and its neighbour may look at the same window.
RECORDINGS: tuple[Recorded, ...] = tuple(dict.fromkeys(found for rule in ALL for found in expressions.recordings_of(rule.when)))
