"""Ollama's API at the gateway of tests/services/gateway."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from features.ollama.gateway.part import PART
from services.gateway.http_api.http_app import HttpRoute

_API = "/ollama/api"
#: The routes that need a credential.
NEED_CREDENTIAL = [
    ("GET", f"{_API}/tags"), ("HEAD", f"{_API}/tags"), ("GET", f"{_API}/ps"),
    *(("POST", f"{_API}/{name}") for name in ("show", "pull", "chat", "generate", "embed", "embeddings")),
]  # fmt: skip
#: Prefix of paths -> the media type of streams.
STREAMS = {"/ollama/": "application/x-ndjson"}


def routes(runs: Any, catalogue: Any) -> Sequence[HttpRoute]:
    return PART.build(cast("Any", SimpleNamespace(runs=runs, catalogue=catalogue))).routes
