"""The settings of a worker."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec
import psutil
from msgspec import Meta

from services.inference.engine.engine_messages import KvMode, KvType, KvTypes
from services.inference.models import quantities
from services.inference.models.catalog import Defaults
from shared import errors, features, model_reference, model_sources, node
from shared.api.inference import ModelSources
from shared.config import Port, Variable
from shared.node import machine
from shared.protocol.directory import DEFAULT_QUEUE
from shared.stores import replica_files
from shared.types import LoadPurpose

#: The values of INFERENCE_BACKEND.
BACKENDS = ("llama", "echo", *features.backends())
if TYPE_CHECKING:
    BackendName = str
else:
    BackendName = Literal[BACKENDS]


class InferenceSettings(node.NodeSettings, frozen=True, kw_only=True):
    SERVICE: ClassVar[str] = "inference"

    port: Annotated[Port, Variable("INFERENCE_SERVICE_PORT", "the HTTP port of the inference service")] = 3003
    backend: Annotated[
        BackendName, Variable("INFERENCE_BACKEND", f"the backend that runs the models: {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}")
    ] = "llama"
    models: Annotated[
        dict[str, str],
        Variable(
            "MODELS", "model files to serve, as name=path, comma-separated; the default is smollm2, which is installed with the worker"
        ),
    ] = msgspec.field(default_factory=dict)
    models_yaml: Annotated[
        Path | None, Variable("MODELS_YAML", "a models.yaml file that lists the models and how to run each; see deploy/models.example.yaml")
    ] = None
    models_dir: Annotated[
        Path | None, Variable("MODELS_DIR", "a folder of .gguf files; each is served under its file's name, also if it is put there later")
    ] = None
    models_pull: Annotated[
        tuple[str, ...],
        Variable(
            "MODELS_PULL",
            "models to download into MODEL_STORE and to serve, comma-separated: hf:OWNER/REPO:QUANT, ollama:NAME:TAG, oci://REGISTRY/NAME:TAG"
            " or a URL; what is there already is served at once",
        ),
    ] = ()
    model_store: Annotated[
        Path | None,
        Variable("MODEL_STORE", "the folder of the models that `aicli models pull` downloads; default: models, beside MESH_STATE_FILE"),
    ] = None
    model_store_quota: Annotated[
        str | None, Variable("MODEL_STORE_QUOTA", "disk space for pulled models together, such as 200GiB; `aicli models pull` checks it")
    ] = None
    model_trust: Annotated[
        Path | None,
        Variable(
            "MODEL_TRUST",
            "a YAML file with rules about whose signatures models need, like the section trust of the configuration; a model must also"
            " satisfy the mesh's rules",
        ),
    ] = None
    allow_pulls: Annotated[
        bool | None,
        Variable(
            "ALLOW_MODEL_PULLS",
            "whether administrators may download models to this machine, with aicli models pull --node; by default what its ticket or owner"
            " chose, else true",
        ),
    ] = None
    model_share: Annotated[
        bool,
        Variable("MODEL_SHARE", "whether other workers may copy models from this one over Hyperswarm, if a gateway lets them"),
    ] = True
    model_copy_rate: Annotated[
        str,
        Variable(
            "MODEL_COPY_RATE",
            "bytes per second that copies of models may receive, and send to other workers, such as 50MB; half of it while answers run",
        ),
    ] = "50MB"
    hub_url: model_sources.HubUrl = model_sources.HUB_URL
    hub_token: model_sources.HubToken = None
    mirrors: model_sources.Mirrors = msgspec.field(default_factory=dict)
    model_memory: Annotated[
        str | None,
        Variable("MODEL_MEMORY", "memory for all loaded models together, such as 12GiB; by default 90 % of what is free at the start"),
    ] = None
    prompt_cache_ram: Annotated[
        str | None,
        Variable(
            "PROMPT_CACHE_RAM",
            "RAM for prompts evicted from the KV caches of all models; by default a tenth of what is free at"
            " the start, at most 8GiB; 0 keeps none",
        ),
    ] = None
    model_keep_alive: Annotated[
        str,
        Variable("MODEL_KEEP_ALIVE", "how long an idle model stays in memory, such as 5m; forever: until another model needs the memory"),
    ] = "forever"
    swap_seconds: Annotated[
        float,
        Meta(ge=0, le=3600),
        Variable(
            "MODEL_SWAP_SECONDS",
            "how long a request for a model that isn't loaded may wait for its turn while other models answer their requests in a row;"
            " 0: a model leaves as soon as it is idle and another needs its memory",
        ),
    ] = 30.0
    slots: Annotated[
        Annotated[int, Meta(ge=1, le=256)] | None,
        Variable("ENGINE_SLOTS", "concurrent answers per model, 1 to 256; by default 4, or on a GPU as many as fit, up to 32"),
    ] = None
    queue: Annotated[
        int, Meta(ge=0, le=10_000), Variable("ENGINE_QUEUE", "requests that may wait for a slot; more are refused as overloaded")
    ] = DEFAULT_QUEUE
    context_tokens: Annotated[
        Annotated[int, Meta(ge=64, le=1_048_576)] | None,
        Variable(
            "ENGINE_CONTEXT_TOKENS",
            "tokens of prompt and answer per slot; by default the model's limit, at most 8192 or on a GPU 32768, less if memory is short;"
            " in shared mode a slot may use the room of others",
        ),
    ] = None
    threads: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Variable("ENGINE_THREADS", "CPU threads of an engine; by default all cores but one, within the container's quota"),
    ] = None
    kv_mode: Annotated[
        KvMode,
        Variable(
            "ENGINE_KV_MODE",
            "exact: the same seed always gives the same answer; shared: few slots read long prompts faster, many share their memory",
        ),
    ] = KvMode.EXACT
    kv_type: Annotated[
        KvType | None,
        Variable(
            "ENGINE_KV_TYPE",
            "f16, bf16, or with lower quality q8_0, half the memory for the context, or q4_0, a quarter; by default f16, or for agents"
            " q8_0 if f16 doesn't fit",
        ),
    ] = None
    models_for: Annotated[
        LoadPurpose,
        Variable("MODELS_FOR", "chats, or agents: one slot with the context that coding agents need before a second one"),
    ] = LoadPurpose.CHATS
    gpu_layers: Annotated[
        int, Meta(ge=-1, le=10_000), Variable("GPU_LAYERS", "layers to put on a GPU if llama.cpp was built for one; -1 is all")
    ] = -1
    echo_slots: Annotated[int, Meta(ge=1, le=256), Variable("ECHO_SLOTS", "concurrent answers of the echo backend, 1 to 256")] = 256
    echo_token_ms: Annotated[float, Meta(ge=0, le=60_000), Variable("ECHO_TOKEN_MS", "milliseconds per token of the echo backend")] = 0.0
    pause_file: Annotated[
        Path | None, Variable("WORKER_PAUSE_FILE", "the worker refuses new requests while this file exists; aicli worker pause creates it")
    ] = None
    status_file: Annotated[
        Path | None, Variable("WORKER_REPORT_FILE", "the file to which the worker writes its status, for aicli worker status")
    ] = None
    console: Annotated[
        Literal["off", "plain"], Variable("WORKER_STATUS", "plain: print status messages to stdout; aicli worker sets it on a terminal")
    ] = "off"
    receipts_file: Annotated[
        Path | None,
        Variable(
            "RECEIPTS_FILE",
            "the file for the receipts of the last day's requests; by default next to MESH_STATE_FILE. Replicas that share a volume use"
            " /folder/{node}/name, and adopt the files of replicas that are gone",
        ),
    ] = None
    watts_idle: Annotated[
        Annotated[float, Meta(ge=0, le=100_000)] | None,
        Variable("NODE_WATTS_IDLE", "watts of this machine without a running request, if it has no GPU that reports its energy or power"),
    ] = None
    watts_busy: Annotated[
        Annotated[float, Meta(ge=0, le=100_000)] | None,
        Variable("NODE_WATTS_BUSY", "watts of this machine with a running request; by default as NODE_WATTS_IDLE"),
    ] = None
    kwh_price: Annotated[
        Annotated[float, Meta(ge=0, le=1000)] | None,
        Variable("KWH_PRICE", "what a kWh costs at this machine, in credits; for the statements of node owners"),
    ] = None
    service_token: Annotated[
        str | None, Variable("SERVICE_TOKEN", "the bearer token for POST /infer; without it /infer is disabled", secret=True)
    ] = None

    @property
    def receipts_path(self) -> Path:
        return self.receipts_file or self.state_file.with_suffix(".receipts")

    @property
    def store_path(self) -> Path:
        return self.model_store or self.state_file.with_name("models")

    @property
    def model_sources(self) -> ModelSources:
        return ModelSources(hub_url=self.hub_url, hub_token=self.hub_token, mirrors=self.mirrors)

    def mistakes(self) -> Iterator[str]:
        yield from super().mistakes()
        for source in map(model_sources.redact, self.models_pull):
            try:
                model_reference.plan(source, None, self.model_sources)
            except errors.BadRequest as error:
                yield f"MODELS_PULL: {source[:200]}: {error.message}; {error.hint}"
        yield from replica_files.mistakes("RECEIPTS_FILE", self.receipts_file)
        for name, text, parse in (
            ("MODEL_MEMORY", self.model_memory, quantities.parse_bytes),
            ("PROMPT_CACHE_RAM", None if self.prompt_cache_ram == "0" else self.prompt_cache_ram, quantities.parse_bytes),
            ("MODEL_STORE_QUOTA", self.model_store_quota, quantities.parse_bytes),
            ("MODEL_COPY_RATE", self.model_copy_rate, quantities.parse_bytes),
            ("MODEL_KEEP_ALIVE", self.model_keep_alive, quantities.parse_seconds),
        ):
            try:
                parse(text or "1")
            except ValueError as error:
                yield f"{name}: {error}"

    @property
    def model_memory_bytes(self) -> int | None:
        return None if self.model_memory is None else quantities.parse_bytes(self.model_memory)

    @property
    def model_store_quota_bytes(self) -> int | None:
        return quantities.parse_bytes(self.model_store_quota) if self.model_store_quota else None

    @property
    def model_copy_bytes_per_second(self) -> int:
        return quantities.parse_bytes(self.model_copy_rate)

    @property
    def prompt_cache_bytes(self) -> int | None:
        if self.prompt_cache_ram in (None, "0"):
            return None if self.prompt_cache_ram is None else 0
        return quantities.parse_bytes(self.prompt_cache_ram)

    def model_defaults(self) -> Defaults:
        """Return the values for models whose catalog entry has none."""
        return Defaults(
            slots=self.slots,
            context_tokens=self.context_tokens,
            gpu_layers=self.gpu_layers,
            kv_mode=self.kv_mode,
            kv_type=None if self.kv_type is None else KvTypes(self.kv_type),
            purpose=self.models_for,
            keep_alive_seconds=quantities.parse_seconds(self.model_keep_alive),
        )


def free_cores(groups: Iterable[Path] | None = None) -> int:
    """Return the number of cores for an engine: all but one, which the worker and the rest of the machine need. ``groups`` are the cgroup
    folders whose quotas count, by default those of this process.

    llama.cpp's threads wait for each other after every operation, so a thread that shares its core slows all of them down:
    on two cores with other work, two threads gave 2 to 16 tokens a second and one thread 18 to 61.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Two hardware threads of one core share its units.
    cores = min(cores, psutil.cpu_count(logical=False) or cores)
    quota = machine.processor_limit(machine.find_cgroups() if groups is None else groups)
    return max(1, (cores if quota is None else min(cores, int(quota))) - 1)
