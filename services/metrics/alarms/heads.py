"""Labels out of the name of a series, as a text of metrics and the history have it. Pure."""

import re

from services.metrics import series
from services.metrics.alerts.evaluating import Labels, labels

_ESCAPED = re.compile(r"\\(.)")


def read(head: str, **more: str) -> Labels | None:
    """Without escapes, and with ``more``; None where it is no name."""
    parsed = series.parse_head(head)
    return None if parsed is None else labels(**{label: _plain(text) for label, text in parsed.labels.items()}, **more)


def _plain(escaped: str) -> str:
    """Without the escapes of the text format."""
    return _ESCAPED.sub(lambda found: "\n" if found.group(1) == "n" else found.group(1), escaped)
