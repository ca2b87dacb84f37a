"""How llama.cpp applies the settings of a load."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import llama_cpp.llama_cpp as native
import msgspec
import pytest

from services.inference import numerics
from services.inference.engine import devices, model_loading
from services.inference.engine.engine_messages import FLASH_ATTENTION_SLOTS, KvMode, KvType, KvTypes, LoadCommand, SplitMode
from services.inference.engine.kv_slots import KvLayout
from services.inference.engine.model_loading import LoadRefused, NativeLog, layout_of
from shared.gguf import gguf_header
from tests import gguf_files
from tests.gguf_files import LlamaShape

SHAPE = LlamaShape(layers=3, embedding=64, heads=2, kv_heads=2, feed_forward=64, vocabulary=300, context=256, experts=4)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> LoadCommand:
    file = tmp_path_factory.mktemp("models") / "experts.gguf"
    gguf_files.write_llama(file, SHAPE, weights="q8_0", seed=1)
    return LoadCommand(str(file), 2, 128, 1, 0)


@contextmanager
def logged(load: LoadCommand) -> Iterator[list[str]]:
    """Load a model, and yield llama.cpp's log."""
    lines: list[str] = []
    callback = native.llama_log_callback(lambda _level, text, _user: lines.append(text.decode()))
    native.llama_log_set(callback, ctypes.c_void_p(0))
    devices.load_backends()
    try:
        with model_loading.loaded(load, NativeLog(), lambda _: None):
            yield lines
    finally:
        native.llama_log_set(native.llama_log_callback(0), ctypes.c_void_p(0))


def overridden(lines: list[str]) -> set[str]:
    return {line.split()[1] for line in lines if "buffer type overridden to CPU" in line}


def test_a_load_ends_without_a_word_when_its_worker_is_gone(load: LoadCommand, capfd: pytest.CaptureFixture[str]) -> None:
    def progressed(_: float) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with model_loading.native_log() as log, pytest.raises(BrokenPipeError), model_loading.loaded(load, log, progressed):
        pass
    assert capfd.readouterr().err == ""


def test_experts_of_the_first_layers_stay_on_the_processor(load: LoadCommand) -> None:
    with logged(load) as lines:
        assert not overridden(lines)
    with logged(msgspec.structs.replace(load, cpu_experts=2)) as lines:
        names = {f"blk.{layer}.ffn_{name}_exps.weight" for layer in (0, 1) for name in ("gate", "up", "down")}
        assert overridden(lines) == names
    with Path(load.path).open("rb") as file:
        header = gguf_header.read_header(file, Path(load.path).stat().st_size)
    assert header.expert_bytes == 3 * 3 * 4 * 64 * 64 // 32 * 34


def test_tensors_go_to_the_device_that_is_set(load: LoadCommand) -> None:
    with logged(msgspec.structs.replace(load, override_tensor=(r"blk\.1\.attn_(q|k)=CPU",), split_mode=SplitMode.ROW)) as lines:
        assert overridden(lines) == {"blk.1.attn_q.weight", "blk.1.attn_k.weight"}
    with (
        pytest.raises(LoadRefused, match=r"override_tensor names CUDA7, but llama\.cpp has no such device here"),
        logged(msgspec.structs.replace(load, override_tensor=("x=CUDA7",))),
    ):
        pass


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (KvTypes(KvType.F16, KvType.F16), "K (f16)|V (f16)"),
        (KvTypes(KvType.BF16), "K (bf16)|V (bf16)"),
        (KvTypes(KvType.Q8_0), "K (q8_0)|V (q8_0)"),
        (KvTypes(KvType.Q8_0, KvType.Q4_0), "K (q8_0)|V (q4_0)"),
        (KvTypes(KvType.F16, KvType.Q4_0), "K (f16)|V (q4_0)"),
    ],
)
def test_types_of_the_cache(load: LoadCommand, types: KvTypes, expected: str) -> None:
    with logged(msgspec.structs.replace(load, kv_type=types)) as lines:
        text = next(line for line in lines if "K (" in line)
        assert all(part in text for part in expected.split("|")), text


def test_heads_that_a_quantized_cache_cannot_store(load: LoadCommand) -> None:
    with Path(load.path).open("rb") as file:
        header = replace(gguf_header.read_header(file, Path(load.path).stat().st_size), key_length=80, value_length=64)
    model_loading.check(header, load)
    model_loading.check(header, msgspec.structs.replace(load, kv_type=KvTypes(KvType.F16, KvType.Q4_0)))
    with pytest.raises(LoadRefused, match="kv_type q8_0 stores blocks of 32, but this model's heads have 80 numbers; use f16 or bf16"):
        model_loading.check(header, msgspec.structs.replace(load, kv_type=KvTypes(KvType.Q8_0, KvType.F16)))


@pytest.fixture
def slow_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "llama_print_system_info", lambda: b"CPU : AVX512 = 1 | ")


FEW, MANY = FLASH_ATTENTION_SLOTS - 1, FLASH_ATTENTION_SLOTS
F16, Q8_0, BF16 = native.GGML_TYPE_F16, native.GGML_TYPE_Q8_0, 30
OFF, AUTO = native.LLAMA_FLASH_ATTN_TYPE_DISABLED, native.LLAMA_FLASH_ATTN_TYPE_AUTO


@pytest.mark.parametrize(
    ("mode", "slots", "kv_type", "values", "flash"),
    [
        pytest.param(KvMode.EXACT, FEW, KvTypes(KvType.F16), BF16, AUTO, id="exact bits"),
        pytest.param(KvMode.EXACT, FEW, KvTypes(KvType.Q8_0), Q8_0, AUTO, id="half of the memory"),
        pytest.param(KvMode.SHARED, FEW, KvTypes(KvType.F16), F16, OFF, id="few answers beside long prompts"),
        pytest.param(KvMode.SHARED, FEW, KvTypes(KvType.F16, KvType.F16), F16, OFF, id="the same types, as set"),
        pytest.param(KvMode.SHARED, FEW, KvTypes(KvType.F16, KvType.Q8_0), Q8_0, AUTO, id="only the values are quantized"),
        pytest.param(KvMode.EXACT, FEW, KvTypes(KvType.F16, KvType.F16), F16, AUTO, id="not exact, as set"),
        pytest.param(KvMode.SHARED, MANY, KvTypes(KvType.F16), F16, AUTO, id="many answers"),
        pytest.param(KvMode.SHARED, FEW, KvTypes(KvType.Q8_0), Q8_0, AUTO, id="quantized values need flash attention"),
    ],
)
@pytest.mark.usefixtures("slow_bf16")
def test_attention_on_a_processor(mode: KvMode, slots: int, kv_type: KvTypes, values: int, flash: int) -> None:
    load = LoadCommand("", slots, 512, 1, 0, kv_mode=mode, kv_type=kv_type)
    parameters = model_loading._context_parameters(load, 512)
    has_pool = mode is KvMode.SHARED and flash is AUTO
    assert (parameters.type_v, parameters.flash_attn_type, parameters.kv_unified) == (values, flash, has_pool)
    assert (layout_of(load) is KvLayout.POOL) is has_pool


@pytest.mark.parametrize(
    ("slots", "kv_type", "expected"),
    [
        pytest.param(FEW, KvTypes(KvType.F16), (BF16, BF16), id="by default"),
        pytest.param(FEW, KvTypes(KvType.F16, KvType.F16), (F16, F16), id="not if the types are set"),
        pytest.param(MANY, KvTypes(KvType.F16), (F16, F16), id="not with flash attention"),
    ],
)
def test_shared_cache_is_bf16_where_that_is_faster(
    slots: int, kv_type: KvTypes, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "llama_print_system_info", lambda: b"CPU : AVX512_BF16 = 1 | ")
    load = LoadCommand("", slots, 512, 1, 0, kv_mode=KvMode.SHARED, kv_type=kv_type)
    parameters = model_loading._context_parameters(load, 512)
    assert (parameters.type_k, parameters.type_v) == expected


@pytest.mark.parametrize(
    ("features", "groups", "expected"),
    [
        pytest.param("AVX512_BF16 = 1", {"zen4": "avx512"}, (BF16, F16), id="fast in bf16"),
        pytest.param("AVX512_BF16 = 1", {}, (F16, BF16), id="compiled"),
        pytest.param("AVX512 = 1", {"zen4": "avx512"}, (F16, BF16), id="without the instruction"),
    ],
)
def test_exact_cache_has_keys_in_bf16_where_that_is_faster(
    features: str, groups: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "llama_print_system_info", f"CPU : {features} | ".encode)
    monkeypatch.setattr(devices, "engine_build", lambda: devices.EngineBuild("0.25.3 abc", groups))
    parameters = model_loading._context_parameters(LoadCommand("", FEW, 512, 1, 0, kv_mode=KvMode.EXACT, kv_type=KvTypes(KvType.F16)), 512)
    assert (parameters.type_k, parameters.type_v) == expected


@pytest.mark.parametrize(
    ("types", "are_equal"),
    [pytest.param(KvTypes(KvType.F16, KvType.BF16), True, id="f16"), pytest.param(KvTypes(KvType.F16), False, id="default")],
)
def test_only_keys_in_bf16_tell_variants_of_a_group_apart(types: KvTypes, are_equal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    monkeypatch.setattr(numerics, "group", lambda *_: "avx512")
    for has_bf16 in (0, 1):
        monkeypatch.setattr(native, "llama_print_system_info", lambda has_bf16=has_bf16: b"CPU : AVX512_BF16 = %d | " % has_bf16)
        found.add(model_loading.numerics_of(LoadCommand("", 2, 512, 1, 0, kv_type=types), NativeLog()))
    assert (len(found) == 1) is are_equal
