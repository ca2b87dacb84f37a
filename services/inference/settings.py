"""The settings of a worker."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from services.inference.engine.engine_messages import KvType
from services.inference.engine.kv_slots import KvMode
from services.inference.models import quantities
from services.inference.models.catalog import Defaults
from shared import node
from shared.config import Port, Variable


class InferenceSettings(node.NodeSettings, frozen=True, kw_only=True):
    port: Annotated[Port, Variable("INFERENCE_SERVICE_PORT", "the HTTP port of the inference service")] = 3003
    backend: Annotated[
        Literal["llama", "echo", "ollama", "openai"],
        Variable("INFERENCE_BACKEND", "what runs the models: llama, echo, ollama or openai"),
    ] = "llama"
    models: Annotated[
        dict[str, str],
        Variable(
            "MODELS",
            "model files to serve, name=path with commas between them; without any models smollm2, which comes with the installation",
        ),
    ] = msgspec.field(default_factory=dict)
    models_yaml: Annotated[
        Path | None,
        Variable("MODELS_YAML", "a models.yaml: which models, under which names, and how each is run; see deploy/models.example.yaml"),
    ] = None
    models_dir: Annotated[Path | None, Variable("MODELS_DIR", "a folder of .gguf files; each is served under its file's name")] = None
    model_memory: Annotated[
        str | None,
        Variable("MODEL_MEMORY", "what all loaded models together may take, as 12GiB; nine tenths of what is free at the start without it"),
    ] = None
    model_keep_alive: Annotated[
        str,
        Variable("MODEL_KEEP_ALIVE", "how long a model stays in memory without a request, as 5m; forever: until another needs the room"),
    ] = "forever"
    slots: Annotated[int, Meta(ge=1, le=256), Variable("ENGINE_SLOTS", "answers that one model writes at the same time, 1 to 256")] = 4
    queue: Annotated[
        int, Meta(ge=0, le=10_000), Variable("ENGINE_QUEUE", "requests that may wait for a slot; more are refused as overloaded")
    ] = 32
    context_tokens: Annotated[
        Annotated[int, Meta(ge=64, le=1_048_576)] | None,
        Variable(
            "ENGINE_CONTEXT_TOKENS",
            "prompt and answer together, for each slot, 2048 or the model's own limit without it; in fast mode one may use others' room",
        ),
    ] = None
    threads: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Variable("ENGINE_THREADS", "processor threads of an engine; all cores but one without it"),
    ] = None
    kv_mode: Annotated[
        KvMode,
        Variable("ENGINE_KV_MODE", "exact: the same seed gives the same answer in any company; fast: one pool, where answers share room"),
    ] = KvMode.EXACT
    kv_type: Annotated[
        KvType, Variable("ENGINE_KV_TYPE", "f16, or q8_0: half the memory for the context, at the cost of a little quality")
    ] = KvType.F16
    gpu_layers: Annotated[
        int, Meta(ge=-1, le=10_000), Variable("GPU_LAYERS", "layers to put on a GPU where llama.cpp was built for one; -1 is all")
    ] = -1
    echo_slots: Annotated[
        int, Meta(ge=1, le=256), Variable("ECHO_SLOTS", "answers that the echo backend gives at the same time, 1 to 256")
    ] = 256
    echo_token_ms: Annotated[float, Meta(ge=0, le=60_000), Variable("ECHO_TOKEN_MS", "how long the echo backend takes for a token")] = 0.0
    ollama_url: Annotated[str, Variable("OLLAMA_URL", "where Ollama listens, for INFERENCE_BACKEND=ollama")] = "http://127.0.0.1:11434"
    openai_url: Annotated[str, Variable("OPENAI_BASE_URL", "an OpenAI-compatible API, for INFERENCE_BACKEND=openai")] = (
        "https://api.openai.com/v1"
    )
    openai_key: Annotated[str | None, Variable("OPENAI_API_KEY", "the key for OPENAI_BASE_URL", secret=True)] = None
    openai_upstreams: Annotated[
        Path | None,
        Variable("OPENAI_UPSTREAMS", "a TOML file of named upstreams, in place of OPENAI_BASE_URL; see docs/howto/other-backends.md"),
    ] = None
    openai_upstream_keys: Annotated[
        dict[str, str], Variable("OPENAI_UPSTREAM_KEYS", "keys of these upstreams, name=key with commas between them", secret=True)
    ] = msgspec.field(default_factory=dict)
    ollama_keep_alive: Annotated[
        str | None, Variable("OLLAMA_KEEP_ALIVE", "how long Ollama keeps a model after a request: 10m, 0, or -1 for always")
    ] = None
    pause_file: Annotated[
        Path | None, Variable("WORKER_PAUSE_FILE", "while this file exists, the worker takes no new requests: aicli worker pause makes it")
    ] = None
    status_file: Annotated[
        Path | None, Variable("WORKER_REPORT_FILE", "where the worker writes how it is, for aicli worker status; nowhere without it")
    ] = None
    narration: Annotated[
        Literal["off", "plain"],
        Variable("WORKER_STATUS", "plain: tell on stdout in sentences what happens; aicli worker sets it where a person watches"),
    ] = "off"
    receipts_file: Annotated[
        Path | None,
        Variable("RECEIPTS_FILE", "where the worker keeps for a day what it did for each request; beside MESH_STATE_FILE without it"),
    ] = None
    service_token: Annotated[
        str | None, Variable("SERVICE_TOKEN", "what POST /infer asks for as a bearer token; without it /infer is off", secret=True)
    ] = None

    @property
    def receipts_path(self) -> Path:
        return self.receipts_file or self.state_file.with_suffix(".receipts")

    def mistakes(self) -> Iterator[str]:
        yield from super().mistakes()
        for name, text, parse in (
            ("MODEL_MEMORY", self.model_memory, quantities.parse_bytes),
            ("MODEL_KEEP_ALIVE", self.model_keep_alive, quantities.parse_seconds),
        ):
            try:
                parse(text or "1")
            except ValueError as error:
                yield f"{name}: {error}"

    @property
    def model_memory_bytes(self) -> int | None:
        return None if self.model_memory is None else quantities.parse_bytes(self.model_memory)

    def model_defaults(self) -> Defaults:
        """What holds for a model that the catalogue says nothing of."""
        return Defaults(
            slots=self.slots,
            context_tokens=self.context_tokens,
            gpu_layers=self.gpu_layers,
            keep_alive_seconds=quantities.parse_seconds(self.model_keep_alive),
        )


def free_cores() -> int:
    """The cores that an engine may keep busy: all but one, which the worker and everything else here needs.

    llama.cpp's threads wait for each other after every operation. One that has to share its core holds up all of them:
    on two cores with other work, two threads gave 2 to 16 tokens a second and one thread 18 to 61.
    """
    return max(1, len(os.sched_getaffinity(0)) - 1)
