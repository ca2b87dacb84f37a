"""All Grafana dashboards as files in deploy/grafana/dashboards.  `python -m tools.docs` writes them."""

import json
from typing import Final

from tools import generated
from tools.boards.machines import MESH, WORKERS
from tools.boards.panel import Dashboard, render
from tools.boards.requests import GATEWAY, OVERVIEW
from tools.boards.trust import LEDGER, SECURITY
from tools.boards.usage import COST, SERVICE_LEVEL, USERS

ALL: Final[tuple[Dashboard, ...]] = (OVERVIEW, GATEWAY, WORKERS, LEDGER, MESH, SECURITY, USERS, COST, SERVICE_LEVEL)
FOLDER: Final = generated.ROOT / "deploy" / "grafana" / "dashboards"


def files() -> dict[str, str]:
    return {f"{one.board}.json": json.dumps(render(one), indent=2, ensure_ascii=False) + "\n" for one in ALL}


def write() -> None:
    generated.write(FOLDER, files())


def drift() -> dict[str, str]:
    return generated.drift(FOLDER, files())
