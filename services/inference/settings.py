"""The settings of a worker."""

import os
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from shared import errors, node
from shared.config import Variable


class InferenceSettings(node.NodeSettings, frozen=True, kw_only=True):
    port: Annotated[int, Variable("INFERENCE_SERVICE_PORT", "the HTTP port of the inference service")] = 3003
    backend: Annotated[
        Literal["llama", "echo", "ollama", "openai"],
        Variable("INFERENCE_BACKEND", "what runs the models: llama, echo, ollama or openai"),
    ] = "llama"
    models: Annotated[
        dict[str, str],
        Variable(
            "MODELS", "model files to serve, name=path with commas between them; without it smollm2, which comes with the installation"
        ),
    ] = msgspec.field(default_factory=dict)
    slots: Annotated[int, Variable("ENGINE_SLOTS", "answers that one model writes at the same time, 1 to 256")] = 4
    queue: Annotated[int, Variable("ENGINE_QUEUE", "requests that may wait for a slot; more are refused as overloaded")] = 32
    context_tokens: Annotated[
        int | None, Variable("ENGINE_CONTEXT_TOKENS", "prompt and answer together, for each slot; 2048 or the model's own limit without it")
    ] = None
    threads: Annotated[int | None, Variable("ENGINE_THREADS", "processor threads of an engine; all cores but one without it")] = None
    gpu_layers: Annotated[int, Variable("GPU_LAYERS", "layers to put on a GPU where llama.cpp was built for one; -1 is all")] = -1
    echo_token_ms: Annotated[float, Variable("ECHO_TOKEN_MS", "how long the echo backend takes for a token")] = 0.0
    ollama_url: Annotated[str, Variable("OLLAMA_URL", "where Ollama listens, for INFERENCE_BACKEND=ollama")] = "http://127.0.0.1:11434"
    openai_url: Annotated[str, Variable("OPENAI_BASE_URL", "an OpenAI-compatible API, for INFERENCE_BACKEND=openai")] = (
        "https://api.openai.com/v1"
    )
    openai_key: Annotated[str | None, Variable("OPENAI_API_KEY", "the key for OPENAI_BASE_URL", secret=True)] = None
    service_token: Annotated[
        str | None, Variable("SERVICE_TOKEN", "what POST /infer asks for as a bearer token; without it /infer is off", secret=True)
    ] = None

    def check(self) -> None:
        """Also what fits its type and cannot work; raises BadSettings."""
        super().check()
        if mistakes := [*self._mistakes()]:
            raise errors.BadSettings("the settings cannot work:\n  " + "\n  ".join(mistakes), hint="see docs/reference/settings.md")

    def _mistakes(self) -> Iterator[str]:
        for name, value, least, most in (
            ("ENGINE_SLOTS", self.slots, 1, 256),
            ("ENGINE_QUEUE", self.queue, 0, 10_000),
            ("ENGINE_CONTEXT_TOKENS", self.context_tokens, 64, 1_048_576),
            ("ENGINE_THREADS", self.threads, 1, 1024),
            ("GPU_LAYERS", self.gpu_layers, -1, 10_000),
            ("ECHO_TOKEN_MS", self.echo_token_ms, 0, 60_000),
        ):
            if value is not None and not least <= value <= most:
                yield f"{name} must be from {least} to {most}, not {value:g}"


def free_cores() -> int:
    """The cores that an engine may keep busy: all but one, which the worker and everything else here needs.

    llama.cpp's threads wait for each other after every operation. One that has to share its core holds up all of them:
    on two cores with other work, two threads gave 2 to 16 tokens a second and one thread 18 to 61.
    """
    return max(1, len(os.sched_getaffinity(0)) - 1)
