"""Who may call Ollama's API."""

from shared.access_rules import NODE, person
from shared.types import Permission

_INFER = person(Permission.INFER)
_READERS = person(Permission.INFER, Permission.READ_MODELS)

ROUTES = {
    "HEAD /ollama/": NODE,
    "GET /ollama/": NODE,
    "HEAD /ollama/api/version": NODE,
    "GET /ollama/api/version": NODE,
    "HEAD /ollama/api/tags": _READERS,
    "GET /ollama/api/tags": _READERS,
    "GET /ollama/api/ps": _READERS,
    "POST /ollama/api/show": _READERS,
    "POST /ollama/api/pull": _READERS,
    "POST /ollama/api/chat": _INFER,
    "POST /ollama/api/generate": _INFER,
    "POST /ollama/api/embed": _INFER,
    "POST /ollama/api/embeddings": _INFER,
}
