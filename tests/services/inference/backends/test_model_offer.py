"""The list of models for a machine that has none."""

import pytest

from services.inference.backends import model_offer
from shared import model_reference
from shared.api.inference import ModelSources

GB = 10**9


@pytest.mark.parametrize(
    ("memory", "disk", "best"),
    [
        (1.5, 100, None),
        (2, 100, "Qwen3-0.6B"),
        (6.2, 100, "Qwen3-4B"),
        (6.3, 100, "Qwen3-8B"),
        (18, 100, "Qwen3-14B"),
        (20, 100, "Qwen3-30B-A3B"),
        (500, 9, "Qwen3-8B"),
        (500, 0.5, None),
    ],
)
def test_the_best_model_that_fits_into_memory_and_on_the_disk_is_offered(memory: float, disk: float, best: str | None) -> None:
    found = model_offer.find_best(round(memory * GB), round(disk * GB))
    assert (found and found.source.partition("/")[2].partition("-GGUF")[0]) == best


@pytest.mark.parametrize(
    ("bandwidth", "best"),
    [
        # Two threads of an old machine, a laptop, a desktop with two channels, a server.
        (3, "Qwen3-0.6B"),
        (9, "Qwen3-0.6B"),
        (15, "Qwen3-1.7B"),
        (25, "Qwen3-30B-A3B"),
        (300, "Qwen3-30B-A3B"),
    ],
)
def test_a_processor_is_offered_what_it_reads_eight_times_a_second(bandwidth: float, best: str) -> None:
    """Two threads were offered 9 GB, which they read once a second. A model with experts reads few of its weights for a token."""
    found = model_offer.find_best(64 * GB, 100 * GB, bandwidth * GB)
    assert (found and found.source.partition("/")[2].partition("-GGUF")[0]) == best


@pytest.mark.parametrize(("bandwidth", "best"), [(25, "Qwen3-4B"), (41, "Qwen3-8B"), (100, "Qwen3-14B"), (3, "Qwen3-0.6B")])
def test_memory_bounds_the_offer_too(bandwidth: float, best: str) -> None:
    found = model_offer.find_best(18 * GB, 100 * GB, bandwidth * GB)
    assert (found and found.source.partition("/")[2].partition("-GGUF")[0]) == best


@pytest.mark.parametrize("model", model_offer.MODELS, ids=lambda model: model.source)
def test_every_listed_model_can_be_pulled_by_name(model: model_offer.StarterModel) -> None:
    assert isinstance(model_reference.plan(model.source, None, ModelSources()), model_reference.Listing)


def test_the_list_is_ordered_by_what_a_model_needs() -> None:
    needs = [(model.file_bytes, model.memory_bytes) for model in model_offer.MODELS]
    assert needs == sorted(needs)
