"""Says which models a server forwards to a provider, by what it says of them. A local address alone would take them for our own. Pure."""

import re
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

import msgspec

from features.remote_servers.worker.upstreams import Dialect, Upstream

#: Of Ollama's cloud models.
OLLAMA_CLOUD = "ollama-com"
#: What gateways to providers, such as LiteLLM or One API, name as the owner of a model. Servers that run models name themselves.
_PROVIDERS = frozenset(
    ("openai", "anthropic", "azure", "bedrock", "cohere", "gemini", "google", "groq", "openrouter", "perplexity", "vertex_ai", "xai")
)
#: The owner of what another mesh runs itself. It names the providers of its other models.
_OWN_MESH = "aimesh"
_CLOUD_TAG = re.compile(r".*:(.*-)?cloud\Z", re.DOTALL)
_MAX_CHARACTERS = 32


class ForwardedTag(msgspec.Struct, frozen=True):
    """What Ollama's list says of a model."""

    name: str
    #: Both are empty for a model that runs there. A copy of a cloud model has any name.
    remote_model: object = None
    remote_host: object = None

    @property
    def provider(self) -> str:
        """Return who gets the prompts; empty if they stay there."""
        if not self.remote_model and not self.remote_host:
            return provider_of_name(self.name)
        return _provider_at(self.remote_host) if isinstance(self.remote_host, str) else OLLAMA_CLOUD


class _Tags(msgspec.Struct, frozen=True):
    models: tuple[ForwardedTag, ...]


def read_tags(content: bytes) -> Mapping[str, str]:
    """Return the provider of each model that Ollama forwards. Raises one of `event_stream.UNREADABLE`."""
    return {tag.name: tag.provider for tag in msgspec.json.decode(content, type=_Tags).models if tag.provider}


def provider_of_name(own_name: str) -> str:
    """Return who gets the prompts of a model that Ollama calls so."""
    return OLLAMA_CLOUD if _CLOUD_TAG.match(own_name) else ""


def provider_of_owner(upstream: Upstream, owner: str, owners: Collection[str]) -> str:
    """Return who gets the prompts of a model with this `owned_by`; ``owners`` are those of all models in the list."""
    if upstream.dialect is Dialect.AIMESH or _OWN_MESH in owners:
        return _named(owner) if owner not in {"", _OWN_MESH} else ""
    return provider_behind(upstream) if owner.lower() in _PROVIDERS else ""


def provider_behind(upstream: Upstream) -> str:
    """Return what to call those to whom a server may forward its prompts; empty if its owner says that it doesn't."""
    return "" if upstream.external is False else upstream.provider or upstream.name


def _provider_at(url: str) -> str:
    try:
        return _named(urlsplit(url if "//" in url else f"//{url}").hostname or "") or OLLAMA_CLOUD
    except ValueError:
        return OLLAMA_CLOUD


def _named(text: str) -> str:
    """Return a name that a policy may have."""
    return re.sub("[^a-z0-9_-]+", "-", text.lower())[:_MAX_CHARACTERS].strip("-_")
