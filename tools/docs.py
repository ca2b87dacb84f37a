"""Write everything that is generated: docs/reference/, parts of docs/howto and of the SDKs, Prometheus rules, the synchronous Python
client, the values table and schema of the Helm chart.

python -m tools.docs            writes all files
python -m tools.docs --check    changes nothing; exits 1 with a diff if a file is out of date
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tools import (
    agents_page,
    alerts,
    chart,
    feature_copies,
    feature_tables,
    generated,
    guard_quality,
    house,
    limits,
    reference,
    run_on,
    sync_client,
)

FOLDER = generated.ROOT / "docs" / "reference"
NOTICE = "<!-- Generated from the code by `python -m tools.docs`. Changes made here are lost. -->\n\n"

#: page -> its renderer.
PAGES: Mapping[str, Callable[[], str]] = {
    "cli.md": reference.commands,
    "settings.md": reference.settings,
    "rpc.md": reference.methods,
    "access.md": reference.access,
    "frames.md": reference.frames,
    "errors.md": reference.failures,
    "subjects.md": reference.subjects,
    "metrics.md": reference.metrics,
    "alerts.md": alerts.page,
    "guardrails.md": guard_quality.page,
    "run-on.md": run_on.page,
}


def render(page: str) -> str:
    return NOTICE + PAGES[page]().strip() + "\n"


def files() -> dict[Path, str]:
    """Return what every generated file of the repository should be."""
    pages = {FOLDER / page: render(page) for page in PAGES} | {FOLDER / "config.schema.json": reference.config_schema()}
    return (
        pages
        | agents_page.files()
        | limits.files()
        | alerts.files()
        | sync_client.files()
        | chart.files()
        | feature_copies.files()
        | feature_tables.files()
        | house.files()
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.docs", description="Write all files that are generated from the code.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 with a diff if a file is out of date")
    if not parser.parse_args().check:
        generated.write(files())
        return 0
    found = generated.drift(files())
    for path, difference in found.items():
        print(f"{path} is out of date. Run: python -m tools.docs\n{difference}\n", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
