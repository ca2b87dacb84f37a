"""A bench's rows: printed as a table, and written as JSON for whoever keeps them."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    """One claim and what was measured for it."""

    claim: str
    value: float
    unit: str
    rival: str | None = None
    rival_value: float | None = None
    #: value / rival_value.
    ratio: float | None = None
    #: In words, such as "ratio <= 1.1".
    target: str | None = None
    #: None where there is no target.
    met: bool | None = None


def against(
    claim: str, value: float, unit: str, rival: str, rival_value: float, *, at_most: float | None = None, at_least: float | None = None
) -> Row:
    """A row whose target is a ratio to a rival of the same run."""
    ratio = value / rival_value
    if at_most is not None:
        return Row(claim, value, unit, rival, rival_value, ratio, f"ratio <= {at_most:g}", ratio <= at_most)
    if at_least is not None:
        return Row(claim, value, unit, rival, rival_value, ratio, f"ratio >= {at_least:g}", ratio >= at_least)
    return Row(claim, value, unit, rival, rival_value, ratio)


def alone(claim: str, value: float, unit: str, *, at_most: float | None = None, at_least: float | None = None) -> Row:
    """A row with an absolute target, or none."""
    if at_most is not None:
        return Row(claim, value, unit, target=f"<= {at_most:g} {unit}", met=value <= at_most)
    if at_least is not None:
        return Row(claim, value, unit, target=f">= {at_least:g} {unit}", met=value >= at_least)
    return Row(claim, value, unit)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of the values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser


def publish(rows: Sequence[Row], to: Path | None) -> None:
    """Print the table, and write it if asked to."""
    head = ("claim", "value", "rival", "ratio", "target", "met")
    lines = [
        (
            row.claim,
            f"{row.value:,.4g} {row.unit}",
            "" if row.rival_value is None else f"{row.rival} {row.rival_value:,.4g} {row.unit}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            row.target or "",
            {True: "yes", False: "NO", None: ""}[row.met],
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]
    for line in (head, *lines):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if to is not None:
        to.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
