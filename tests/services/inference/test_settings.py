import os
from pathlib import Path

import psutil
import pytest

from services.inference.engine.engine_messages import KvMode, KvType, KvTypes
from services.inference.models.catalog import Defaults
from services.inference.settings import InferenceSettings, free_cores
from shared import config, errors
from shared.types import LoadPurpose


def load(**environment: str) -> InferenceSettings:
    return config.load(InferenceSettings, {"NODE_KEY_FILE": "/nowhere", **environment})


def test_defaults() -> None:
    settings = load()
    assert (settings.port, settings.backend, settings.slots, settings.models) == (3003, "llama", None, {})
    assert settings.service_token is None


def test_models_are_pairs() -> None:
    assert load(MODELS="a=/x/a.gguf, b=/x/b.gguf").models == {"a": "/x/a.gguf", "b": "/x/b.gguf"}


def test_model_options() -> None:
    settings = load(MODEL_MEMORY="12GiB", MODEL_KEEP_ALIVE="5m", ENGINE_SLOTS="7", GPU_LAYERS="2", ENGINE_CONTEXT_TOKENS="512")
    assert settings.model_memory_bytes == 12 * 2**30
    assert settings.model_defaults() == Defaults(slots=7, context_tokens=512, gpu_layers=2, kv_mode=KvMode.EXACT, keep_alive_seconds=300.0)
    agents = load(MODELS_FOR="agents", ENGINE_KV_TYPE="f16", ENGINE_KV_MODE="shared").model_defaults()
    assert (agents.purpose, agents.kv_type, agents.kv_mode) == (LoadPurpose.AGENTS, KvTypes(KvType.F16), KvMode.SHARED)
    assert load().model_memory_bytes is None
    assert load().model_defaults().keep_alive_seconds is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INFERENCE_BACKEND", "magic"),
        ("ENGINE_SLOTS", "0"),
        ("ENGINE_SLOTS", "257"),
        ("ENGINE_QUEUE", "-1"),
        ("ENGINE_CONTEXT_TOKENS", "1"),
        ("ENGINE_THREADS", "0"),
        ("GPU_LAYERS", "-2"),
        ("ECHO_TOKEN_MS", "nan"),
        ("ECHO_TOKEN_MS", "-1"),
        ("MODELS", "a.gguf"),
        ("MODEL_MEMORY", "plenty"),
        ("MODEL_MEMORY", "0"),
        ("MODEL_KEEP_ALIVE", "a while"),
        ("MODELS_FOR", "agent"),
    ],
)
def test_invalid_settings_are_named(name: str, value: str) -> None:
    with pytest.raises(errors.BadSettings, match=name):
        load(**{name: value})


def test_the_token_is_never_shown() -> None:
    secret = {setting.variable.name for setting in config.settings_of(InferenceSettings) if setting.variable.secret}
    assert "SERVICE_TOKEN" in secret


@pytest.mark.parametrize(
    ("threads", "cores", "quota", "expected"),
    [
        (16, 16, "max 100000", 15),
        # Two hardware threads per core.
        (16, 8, "max 100000", 7),
        (16, 8, "400000 100000", 3),
        (4, None, "max 100000", 3),
        (16, 16, "50000 100000", 1),
        (1, 1, "max 100000", 1),
    ],
)
def test_engine_gets_all_cores_but_one_within_the_quota(
    threads: int, cores: int | None, quota: str, expected: int, *, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(threads)))
    monkeypatch.setattr(psutil, "cpu_count", lambda *, logical: None if logical else cores)
    (tmp_path / "cpu.max").write_text(quota)
    assert free_cores([tmp_path]) == expected
