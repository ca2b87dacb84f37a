"""The catalog: what it finds, and its estimates beside the sizes of published files."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.models import catalog
from services.inference.backends import model_offer
from shared import model_reference
from shared.api.inference import MAX_PLANNED, ModelSources
from shared.api.model_search import MAX_FOUND
from shared.config_documents import CatalogDocument, CatalogUse

BUILTIN = catalog.load()

models = st.builds(
    CatalogDocument,
    source=st.just("hf:org/model-GGUF"),
    parameters=st.integers(10**6, 10**12),
    quantizations=st.sampled_from([("Q4_K_M",), ("Q8_0",), ("F16",), ("mxfp4",), ("new",)]),
    layers=st.none() | st.integers(1, 200),
    key_width=st.none() | st.integers(0, 16_384),
    context=st.none() | st.integers(1, 10**6),
)


@pytest.mark.parametrize("name", BUILTIN)
def test_every_entry_can_be_pulled_and_found(name: str) -> None:
    model = BUILTIN[name]
    assert isinstance(model_reference.plan(model.source, None, ModelSources()), model_reference.Listing)
    assert model.source.endswith(f":{model.quantizations[0]}")
    assert (model.size, model.sha256) == (None, None), "only the hub knows"
    assert catalog.find(BUILTIN, name.upper()) == catalog.find(BUILTIN, model.source) == (name, model)
    assert not catalog.found(name, model).room[2] > (model.context or 0)


def test_no_name_means_two_models_and_all_fit_one_question() -> None:
    names = [name for key, model in BUILTIN.items() for name in (key, *model.aliases)]
    assert len(names) == len(set(names))
    assert len(BUILTIN) <= MAX_FOUND <= MAX_PLANNED


def test_estimates_are_near_the_published_sizes() -> None:
    for starter in model_offer.MODELS:
        found = catalog.find(BUILTIN, starter.source)
        assert found is not None, "a machine that joins is offered what the catalog has"
        assert catalog.file_bytes(found[1]) == pytest.approx(starter.file_bytes, rel=0.02)
        facts = catalog.facts(found[1])
        assert 4 * facts.layers * facts.key_width == starter.token_bytes


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("qwen3 tools code", ["qwen3-coder:30b"]),
        ("RERANK", ["bge-reranker-v2-m3"]),
        ("images", ["gemma3:4b"]),
        ("llama-2-7b", ["llama2:7b"]),
        ("no such thing", []),
    ],
)
def test_search(text: str, names: list[str]) -> None:
    assert [name for name, _ in catalog.search(BUILTIN, text)] == names


def test_all_uses_have_a_model() -> None:
    assert {use for model in BUILTIN.values() for use in model.uses} == set(CatalogUse)


@pytest.mark.parametrize(("typed", "meant"), [("qwen3:8", "qwen3:8b"), ("smolm2", "smollm2"), ("Mistrall", "mistral:7b")])
def test_nearest_name(typed: str, meant: str) -> None:
    assert catalog.nearest(BUILTIN, typed)[0] == meant
    assert catalog.nearest(BUILTIN, "zzzzzz") == []


@given(models, st.integers(10**9, 10**12), st.integers(0, 10**11))
def test_room_grows_with_memory_up_to_the_models_own_context(model: CatalogDocument, memory: int, more: int) -> None:
    room, larger = catalog.room(model, memory), catalog.room(model, memory + more)
    assert 0 <= room <= larger
    assert model.context is None or larger <= model.context
    facts = catalog.facts(model)
    if room and facts.key_width:
        assert facts.file_bytes + room * 4 * facts.layers * facts.key_width <= memory


@given(models, st.integers(1, 2**45))
def test_a_known_size_counts_instead_of_the_estimate(model: CatalogDocument, size: int) -> None:
    larger = msgspec.structs.replace(model, parameters=model.parameters * 2)
    assert catalog.file_bytes(model) < catalog.file_bytes(larger)
    assert catalog.file_bytes(msgspec.structs.replace(model, size=size)) == size
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(catalog.facts(model)), type=type(catalog.facts(model))) == catalog.facts(model)
