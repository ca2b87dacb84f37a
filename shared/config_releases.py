"""Knows which releases can read a document of the configuration. Pure.

A gateway that can't read a document that restricts refuses its callers, and auth cuts a gateway whose release is too old for one.
``tests/shared/test_config_releases.py`` compares the tables with the previous release, so that no added field is forgotten.
"""

import re
from collections.abc import Iterator

import msgspec

from shared.config_documents import RESTRICTING, ConfigKind, Document, PlanDocument, PolicyDocument, TargetConditions
from shared.types import Tier

#: The oldest release that may run beside this one.
OLDEST = "0.3.0"
#: What later releases have added.
KINDS: dict[ConfigKind, str] = {
    ConfigKind.DEPLOYMENT: "0.4.0",
    ConfigKind.CATALOG_MODEL: "0.4.0",
    ConfigKind.SERVER: "0.4.0",
    ConfigKind.TRUST: "0.4.0",
}
FIELDS: dict[type[Document], dict[str, str]] = {
    PolicyDocument: dict.fromkeys(("stored_prompts", "flex"), "0.4.0"),
    PlanDocument: dict.fromkeys(
        (
            "included_tokens", "file_bytes", "queued_lines", "fee", "overage_limit", "flex", "for_sale", "stripe_price", "stripe_meter",
            "paddle_price",
        ),
        "0.4.0",
    ),
}  # fmt: skip
#: Plans with names of their own, and routes' conditions that name them.
OWN_PLANS = "0.4.0"
_RELEASE = re.compile(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})")


def order(release: str) -> tuple[int, ...]:
    """Return what sorts releases; one without a version sorts first."""
    found = _RELEASE.match(release)
    return () if found is None else tuple(map(int, found.groups()))


#: The release whose documents this one reads: during the development of a release, its version is still that of the one before.
READS = max((OLDEST, OWN_PLANS, *KINDS.values(), *(release for fields in FIELDS.values() for release in fields.values())), key=order)


def is_older(release: str, than: str) -> bool:
    return order(release) < order(than)


def find_oldest_reader(kind: ConfigKind, name: str, body: Document | None) -> str:
    """Return the oldest release that can read a document. All can read that it was removed."""
    if body is None:
        return OLDEST
    own_plan = OWN_PLANS if kind is ConfigKind.PLAN and name not in set(Tier) else OLDEST
    return max((OLDEST, KINDS.get(kind, OLDEST), own_plan, *_releases_of(body)), key=order)


def find_needed(kind: ConfigKind, name: str, body: Document | None) -> str:
    """Return the oldest release whose gateways may answer requests while this document is current."""
    return find_oldest_reader(kind, name, body) if kind in RESTRICTING else OLDEST


def _releases_of(part: object) -> Iterator[str]:
    """Yield the release of each field that the part has, and of what is in it."""
    match part:
        case Document():
            added = FIELDS.get(type(part), {})
            for field in msgspec.structs.fields(type(part)):
                value = getattr(part, field.name)
                if field.required or value != field.default:
                    yield added.get(field.name, OLDEST)
                    yield from _releases_of(value)
            if isinstance(part, TargetConditions) and not set(Tier).issuperset(part.tiers):
                yield OWN_PLANS
        case tuple():
            for item in part:
                yield from _releases_of(item)
