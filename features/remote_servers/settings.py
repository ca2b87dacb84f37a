"""The settings of other servers, for workers and for the stack, which runs a worker for each kind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from shared.config import Port, Settings, Variable

OPENAI_URL = "https://api.openai.com/v1"


class ServerSettings(Settings, frozen=True, kw_only=True):
    ollama_url: Annotated[str, Variable("OLLAMA_URL", "the address of Ollama, for INFERENCE_BACKEND=ollama")] = "http://127.0.0.1:11434"
    openai_url: Annotated[str, Variable("OPENAI_BASE_URL", "an OpenAI-compatible API, for INFERENCE_BACKEND=openai")] = OPENAI_URL
    openai_key: Annotated[str | None, Variable("OPENAI_API_KEY", "the key for OPENAI_BASE_URL", secret=True)] = None
    openai_upstreams: Annotated[
        Path | None, Variable("OPENAI_UPSTREAMS", "a TOML file of upstreams, instead of OPENAI_BASE_URL; see docs/howto/other-backends.md")
    ] = None
    openai_upstream_keys: Annotated[
        dict[str, str], Variable("OPENAI_UPSTREAM_KEYS", "keys of these upstreams, as name=key, comma-separated", secret=True)
    ] = msgspec.field(default_factory=dict)
    remote_model_hosts: Annotated[
        tuple[str, ...],
        Variable(
            "REMOTE_MODEL_HOSTS",
            "hosts of the servers that administrators may add, comma-separated, for INFERENCE_BACKEND=openai: names, addresses, or patterns"
            " such as *.example.org for public addresses only; by default none",
        ),
    ] = ()
    ollama_keep_alive: Annotated[
        str | None, Variable("OLLAMA_KEEP_ALIVE", "how long Ollama keeps a model after a request: 10m, 0, or -1 for always")
    ] = None

    def mistakes_beside(self, own: Settings) -> Iterator[str]:
        if self.remote_model_hosts and getattr(own, "backend", "") != "openai":
            yield "REMOTE_MODEL_HOSTS needs a worker with INFERENCE_BACKEND=openai"


class ServerStackSettings(Settings, frozen=True, kw_only=True):
    ollama_port: Annotated[
        Port | None, Variable("OLLAMA_SERVICE_PORT", "port of the worker for OLLAMA_URL; by default a free port, chosen once")
    ] = None
    openai_port: Annotated[Port | None, Variable("OPENAI_SERVICE_PORT", "port of the worker for OpenAI's API, likewise")] = None
    http_port: Annotated[Port | None, Variable("HTTP_SERVICE_PORT", "port of the worker for the services in MODELS_YAML, likewise")] = None
    ollama_url: Annotated[str | None, Variable("OLLAMA_URL", "add a worker for this Ollama server")] = None
    openai_url: Annotated[str | None, Variable("OPENAI_BASE_URL", "add a worker for this OpenAI-compatible API")] = None
    openai_key: Annotated[str | None, Variable("OPENAI_API_KEY", "add a worker for OpenAI, or for OPENAI_BASE_URL", secret=True)] = None
    openai_upstreams: Annotated[Path | None, Variable("OPENAI_UPSTREAMS", "add a worker for the upstreams of this file")] = None
    remote_model_hosts: Annotated[
        tuple[str, ...], Variable("REMOTE_MODEL_HOSTS", "add a worker for servers that administrators add, on these hosts")
    ] = ()


#: Who reads them.
SETTINGS = {"inference": ServerSettings, "stack": ServerStackSettings}
