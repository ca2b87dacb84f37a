"""The requests of the access matrix for Ollama's API."""

from collections.abc import Callable
from typing import Any

REQUESTS: dict[str, Callable[[], Any]] = {}
BODIES: dict[str, Callable[[], Any]] = {
    "HEAD /ollama/": lambda: None,
    "GET /ollama/": lambda: None,
    "HEAD /ollama/api/version": lambda: None,
    "GET /ollama/api/version": lambda: None,
    "HEAD /ollama/api/tags": lambda: None,
    "GET /ollama/api/tags": lambda: None,
    "GET /ollama/api/ps": lambda: None,
    "POST /ollama/api/show": lambda: {"model": "echo"},
    "POST /ollama/api/pull": lambda: {"model": "echo"},
    "POST /ollama/api/chat": lambda: {"messages": [{"role": "user", "content": "hi"}], "model": "echo"},
    "POST /ollama/api/generate": lambda: {"prompt": "hi", "model": "echo"},
    "POST /ollama/api/embed": lambda: {"input": "hi", "model": "echo"},
    "POST /ollama/api/embeddings": lambda: {"prompt": "hi", "model": "echo"},
}
