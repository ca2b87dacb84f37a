"""What the pages of administrators say at their top while something bad fires that nobody looks after. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from shared.api.alerts import Alert

#: Those for which somebody is woken, or looks within the hour. The others are on the page of alerts.
_SPOKEN_OF = frozenset({"page", "critical"})
#: So many are named; the others are counted.
_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Banner:
    """One line. Nothing to say where it has no words."""

    #: How many there are.
    words: str = ""
    #: What they are.
    names: str = ""


NOTHING = Banner()


def of(alerts: Iterable[Alert]) -> Banner:
    """Of what a service lists, the gravest first."""
    bad = [alert for alert in alerts if alert.severity in _SPOKEN_OF and alert.state == "firing"]
    left = [alert for alert in bad if not alert.seen_by and not alert.silenced]
    if not left:
        return NOTHING
    # What is said of fifty machines in the same words is said once.
    summaries = list(dict.fromkeys(alert.summary for alert in left))
    rest = len(summaries) - _NAMED
    names = ", ".join(summaries[:_NAMED]) + (f", and {rest} more" if rest > 0 else "")
    return Banner(words=f"{len(left)} alert{'s' * (len(left) != 1)}:", names=names)


def values(banner: Banner) -> dict[str, object]:
    """For the events of any page."""
    return {"banner": banner.words, "banner_names": banner.names}
