"""Validate spans from nodes, which are untrusted: limit their size, and let only gateways and web name requests. Pure."""

import re
from math import isfinite
from typing import Final

from shared.spans import REQUEST_ID, Span, Value
from shared.types import SERVICE_NAMES, Role

_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}")
_SPAN_ID: Final = re.compile(r"[0-9a-f]{16}")
_MAX_NAME: Final = 200
_MAX_ATTRIBUTES: Final = 32
_MAX_TEXT: Final = 256
_MOST: Final = 2**63 - 1
#: Only these services create request ids.
_NAMES_REQUESTS: Final = frozenset({SERVICE_NAMES[Role.GATEWAY], SERVICE_NAMES[Role.WEB]})


def is_sound(span: Span, service: str) -> bool:
    ids = _TRACE_ID.fullmatch(span.trace_id) and _SPAN_ID.fullmatch(span.span_id) and _SPAN_ID.fullmatch(span.parent_id or span.span_id)
    if not ids or not 0 <= span.start_ns <= span.end_ns <= _MOST:
        return False
    if not 0 < len(span.name) <= _MAX_NAME or len(span.error) > _MAX_TEXT or len(span.attributes) > _MAX_ATTRIBUTES:
        return False
    if REQUEST_ID in span.attributes and service not in _NAMES_REQUESTS:
        return False
    return all(len(name) <= _MAX_NAME and _is_small(value) for name, value in span.attributes.items())


def _is_small(value: Value) -> bool:
    if isinstance(value, str):
        return len(value) <= _MAX_TEXT
    return -_MOST <= value <= _MOST if isinstance(value, int) else isfinite(value)
