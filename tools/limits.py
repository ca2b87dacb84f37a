"""Write the kinds of limits into the SDKs and docs/howto/costs.md.

`python -m tools.docs` runs it.
"""

from collections.abc import Iterator
from pathlib import Path

from services.gateway.facts import tiers
from shared.limits import LIMITS
from shared.types import Tier
from tools import generated

_COSTS = generated.ROOT / "docs/howto/costs.md"
_JAVASCRIPT = generated.ROOT / "sdk/javascript/index.d.ts"
_PYTHON = generated.ROOT / "sdk/python/src/aimesh/limits.py"
_NOTICE, _END = "Generated from shared/limits.py by `python -m tools.docs`.", "End of the generated part."

_MODULE = f'''# {_NOTICE} Changes made here are lost.
"""The limits of API keys."""

from dataclasses import dataclass
from typing import TypedDict

from aimesh.json_fields import JsonFields


class NewKeyLimits(TypedDict, total=False):
    """Limits of one key, tighter than the account's."""

{{fields}}

@dataclass(frozen=True, slots=True, kw_only=True)
class ShownLimits:
    """None for what the key does not limit."""

{{fields}}

def read(key: JsonFields) -> ShownLimits:
    return ShownLimits(
{{found}}    )
'''


def files() -> dict[Path, str]:
    limits = generated.table(("", *Tier), _rows())
    costs = generated.with_part(_COSTS.read_text(encoding="utf-8"), f"<!-- {_NOTICE} -->", f"\n{limits}\n\n", f"<!-- {_END} -->")
    types = "export type LimitKind =\n" + "".join(f"  | '{kind.name}'\n" for kind in LIMITS)
    fields = "".join(f"    #: {kind.label}{kind.about}.\n    {kind.name}: int | None\n" for kind in LIMITS)
    found = "".join(f'        {kind.name}=key.maybe_integer("{kind.name}"),\n' for kind in LIMITS)
    return {
        _COSTS: costs,
        _JAVASCRIPT: generated.with_part(_JAVASCRIPT.read_text(encoding="utf-8"), f"// {_NOTICE}", types, f"// {_END}"),
        _PYTHON: _MODULE.format(fields=fields, found=found),
    }


def _rows() -> Iterator[tuple[str, ...]]:
    rows = {kind.label: [kind.defaults.get(tier) for tier in Tier] for kind in LIMITS}
    rows["Bytes of stored files"] = [tiers.DEFAULTS[tier].file_bytes for tier in Tier]
    rows["Lines of jobs that wait"] = [tiers.DEFAULTS[tier].queued_lines for tier in Tier]
    rows["Included tokens per month"] = [tiers.DEFAULTS[tier].included_tokens for tier in Tier]
    for label, numbers in rows.items():
        yield label, *("no limit" if number is None else f"{number:,}" for number in numbers)
