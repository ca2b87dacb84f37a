"""List all alert rules, and the series that Prometheus records for them."""

from collections.abc import Mapping
from types import MappingProxyType

from services.metrics.alerting.rules import backup_rules, expressions, machine_rules, objectives, request_rules, scaling_rules, trust_rules
from services.metrics.alerting.rules.alert_rule import AlertRule
from services.metrics.alerting.rules.expressions import RecordedSeries

#: In the order of the reference page. Each group is a file of Prometheus rules.
GROUPS: Mapping[str, tuple[AlertRule, ...]] = MappingProxyType(
    {
        "objectives": objectives.RULES,
        "requests": request_rules.RULES,
        "trust": trust_rules.RULES,
        "backups": backup_rules.RULES,
        "machines": machine_rules.RULES,
        "scaling": scaling_rules.RULES,
    }
)
ALL: tuple[AlertRule, ...] = tuple(rule for rules in GROUPS.values() for rule in rules)

#: Without duplicates: two burn alerts can use the same window.
RECORDINGS: tuple[RecordedSeries, ...] = tuple(dict.fromkeys(found for rule in ALL for found in expressions.recordings_of(rule.when)))
