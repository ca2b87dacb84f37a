"""Valid calls of Ollama's API, for schemathesis."""

from collections.abc import Callable, Mapping
from typing import Any

import httpx

RUNS_A_MODEL = {f"/ollama/api/{name}" for name in ("chat", "generate", "embed", "embeddings")}


async def good_calls(_http: httpx.AsyncClient) -> Mapping[str, Callable[[], Mapping[str, Any]]]:
    return {
        "POST /ollama/api/chat": lambda: {"messages": [{"role": "user", "content": "hi"}], "model": "echo"},
        "POST /ollama/api/generate": lambda: {"prompt": "hi", "model": "echo"},
        "POST /ollama/api/embed": lambda: {"input": "hi", "model": "echo"},
        "POST /ollama/api/embeddings": lambda: {"prompt": "hi", "model": "echo"},
        "POST /ollama/api/show": lambda: {"model": "echo"},
        "POST /ollama/api/pull": lambda: {"model": "echo"},
    }
