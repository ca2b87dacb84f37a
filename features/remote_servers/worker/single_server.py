"""How a worker talks to one server that is not in a file of upstreams."""

from features.remote_servers.worker import ollama, openai
from features.remote_servers.worker.remote_server import ServerApi
from features.remote_servers.worker.rules.server_errors import RefusalSource
from features.remote_servers.worker.upstreams import Dialect, Upstream


def describe(upstream: Upstream, name: str, url_setting: str) -> tuple[RefusalSource, ServerApi]:
    """Return how errors name it, and its API: Ollama has its own, at a URL without a path."""
    if upstream.dialect is Dialect.OLLAMA:
        return RefusalSource(name, url_setting, upstream, ollama.URL_QUESTION), ollama.api_of(upstream)
    return RefusalSource(name, url_setting, upstream), openai.api_of(upstream, name)
