"""Which LoRA adapters fit a model. llama.cpp would abort on many of the others."""

from pathlib import Path

import pytest

from shared.gguf import gguf_header
from tests import gguf_files
from tests.gguf_files import LlamaShape, Tensor, Typed, array, single, text

SHAPE = LlamaShape(layers=2, embedding=64, heads=4, kv_heads=2, feed_forward=96, vocabulary=300, context=64)
PAIRS = {"general.architecture": text("llama"), "general.type": text("adapter"), "adapter.type": text("lora")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("models") / "base.gguf"
    gguf_files.write_llama(file, SHAPE, weights="q8_0", seed=1)
    return file


def problem(model: Path, folder: Path, tensors: tuple[Tensor, ...], changed: dict[str, Typed] | None = None) -> str:
    file = folder / "adapter.gguf"
    file.write_bytes(gguf_files.joined(gguf_files.file(PAIRS | (changed or {}), tensors)))
    (found,) = gguf_header.check_adapters(model, [file])
    return found


def pair(name: str, a: tuple[int, ...], b: tuple[int, ...], storage: str = "f16") -> tuple[Tensor, ...]:
    return Tensor(f"{name}.lora_a", a, storage), Tensor(f"{name}.lora_b", b, storage)


GOOD = pair("blk.0.attn_q.weight", (64, 8), (8, 64))


@pytest.mark.parametrize("storage", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("names", [("attn_q",), ("attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), ("output",)])
def test_good_adapters(model: Path, tmp_path: Path, storage: gguf_files.AdapterWeights, names: tuple[str, ...]) -> None:
    gguf_files.write_adapter(tmp_path / "good.gguf", SHAPE, weights=storage, seed=1, names=names)
    assert gguf_header.check_adapters(model, [tmp_path / "good.gguf"]) == ("",)


def test_embeddings_are_transposed_and_norms_ignored(model: Path, tmp_path: Path) -> None:
    norm = Tensor("blk.0.attn_norm.weight", (64,), "f32")
    assert problem(model, tmp_path, (*pair("token_embd.weight", (8, 300), (8, 64)), norm)) == ""


def test_adapter_of_experts(tmp_path: Path) -> None:
    experts = LlamaShape(layers=2, embedding=64, heads=4, kv_heads=2, feed_forward=96, vocabulary=300, context=64, experts=4)
    gguf_files.write_llama(tmp_path / "base.gguf", experts, weights="q8_0", seed=1)
    name = "blk.0.ffn_up_exps.weight"
    assert problem(tmp_path / "base.gguf", tmp_path, pair(name, (64, 8, 4), (8, 96, 4))) == ""
    assert "the model's tensor has (64, 96, 4)" in problem(tmp_path / "base.gguf", tmp_path, pair(name, (64, 8), (8, 96)))


@pytest.mark.parametrize(
    ("tensors", "changed", "reason"),
    [
        pytest.param((), {}, "it has no tensors", id="nothing in it"),
        pytest.param(GOOD, {"general.type": text("model")}, "it is not a LoRA adapter: general.type is 'model'", id="a model"),
        pytest.param(GOOD, {"adapter.type": text("dora")}, "adapter.type is 'dora'", id="another kind of adapter"),
        pytest.param(GOOD, {"general.type": single("u32", 1)}, "general.type is not a text", id="a type that is a number"),
        pytest.param(
            GOOD, {"adapter.lora.alpha": single("u32", 8)}, "adapter.lora.alpha is not a number of the type float32", id="a whole alpha"
        ),
        pytest.param(GOOD, {"general.architecture": text("qwen2")}, "for models of the architecture qwen2", id="another architecture"),
        pytest.param(GOOD, {"adapter.alora.invocation_tokens": array("u32", [1])}, "(aLoRA), which isn't supported", id="aLoRA"),
        pytest.param(GOOD[:1], {}, "the other matrix of its tensor 'blk.0.attn_q.weight.lora_a' is missing", id="half a pair"),
        pytest.param(GOOD[1:], {}, "the other matrix of its tensor 'blk.0.attn_q.weight.lora_b' is missing", id="the other half"),
        pytest.param((Tensor("x", (4,), "f32"),), {}, "'x' is not a part of a LoRA adapter", id="another tensor"),
        pytest.param(pair("blk.2.attn_q.weight", (64, 8), (8, 64)), {}, "which the model doesn't have", id="too many layers"),
        pytest.param(pair("blk.0.attn_q.weight", (64, 32), (32, 64), "q4_0"), {}, "is stored as q4_0", id="a type"),
        pytest.param(pair("blk.0.attn_q.weight", (32, 8), (8, 64)), {}, "the shapes (32, 8) and (8, 64)", id="too narrow"),
        pytest.param(pair("blk.0.attn_q.weight", (64, 8), (8, 32)), {}, "the shapes (64, 8) and (8, 32)", id="too low"),
        pytest.param(pair("blk.0.attn_q.weight", (64, 8), (4, 64)), {}, "the shapes (64, 8) and (4, 64)", id="two ranks"),
        pytest.param(pair("blk.0.attn_q.weight", (64, 8, 3), (8, 64, 3)), {}, "it is for another model", id="a dimension more"),
        pytest.param(pair("blk.0.attn_norm.weight", (64,), (64,)), {}, "it is for another model", id="no matrix"),
        pytest.param(pair("token_embd.weight", (64, 8), (8, 300)), {}, "it is for another model", id="embeddings not transposed"),
    ],
)
def test_bad_adapters(model: Path, tmp_path: Path, tensors: tuple[Tensor, ...], changed: dict[str, Typed], reason: str) -> None:
    found = problem(model, tmp_path, tensors, changed)
    assert found.startswith(f"{tmp_path / 'adapter.gguf'}: ")
    assert reason in found


def test_embeddings_that_are_also_the_output(tmp_path: Path) -> None:
    tied = LlamaShape(layers=2, embedding=64, heads=4, kv_heads=2, feed_forward=96, vocabulary=300, context=64, window=8)
    gguf_files.write_llama(tmp_path / "base.gguf", tied, weights="q8_0", seed=1)
    tensors = pair("token_embd.weight", (8, 300), (8, 64))
    found = problem(tmp_path / "base.gguf", tmp_path, tensors, {"general.architecture": text("gemma2")})
    assert "which this model also uses for its output" in found


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model" * 10])
def test_unreadable_files(model: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.gguf").write_bytes(content)
    found = gguf_header.check_adapters(model, [tmp_path / "bad.gguf", tmp_path / "none.gguf", tmp_path])
    assert [each.partition(": ")[0] for each in found] == [str(tmp_path / "bad.gguf"), str(tmp_path / "none.gguf"), str(tmp_path)]
    assert gguf_header.check_adapters(tmp_path / "bad.gguf", [tmp_path / "none.gguf"])[0].startswith(str(tmp_path / "bad.gguf"))
