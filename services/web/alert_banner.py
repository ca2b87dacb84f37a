"""Build the banner that administrators see while severe alerts are unacknowledged. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from shared.api.alerts import Alert

#: Severities that need action within the hour. The others appear on the alerts page only.
_SHOWN_SEVERITIES = frozenset({"page", "critical"})
#: How many alerts are named; the rest are counted.
_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertBanner:
    """One line of text; hidden while ``words`` is empty."""

    words: str = ""
    names: str = ""


NOTHING = AlertBanner()


def of(alerts: Iterable[Alert]) -> AlertBanner:
    """Return the banner for these alerts, sorted by severity."""
    bad = [alert for alert in alerts if alert.severity in _SHOWN_SEVERITIES and alert.state == "firing"]
    left = [alert for alert in bad if not alert.seen_by and not alert.silenced]
    if not left:
        return NOTHING
    # Show identical summaries of several nodes once.
    summaries = list(dict.fromkeys(alert.summary for alert in left))
    rest = len(summaries) - _NAMED
    names = ", ".join(summaries[:_NAMED]) + (f", and {rest} more" if rest > 0 else "")
    return AlertBanner(words=f"{len(left)} alert{'s' * (len(left) != 1)}:", names=names)


def values(banner: AlertBanner) -> dict[str, object]:
    """Return the values that live pages receive."""
    return {"banner": banner.words, "banner_names": banner.names}
