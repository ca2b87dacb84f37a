"""The dashboards for Grafana, as they are written."""

import json
from pathlib import Path
from typing import Any

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
#: uid -> its JSON.
BOARDS: dict[str, Any] = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((GRAFANA / "dashboards").glob("*.json"))
}
SERVICE_LEVEL = BOARDS["aimesh-service-level"]
