"""Tool parameters as servers of the Model Context Protocol describe them: long enums, long texts, nested and recursive objects."""

import json
from pathlib import Path
from typing import Any

#: Our own, in the style of servers that scrape, search, file issues, plan, query, edit, convert, filter, send and browse.
SCHEMAS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("tool_schemas.json").read_text(encoding="utf-8"))
