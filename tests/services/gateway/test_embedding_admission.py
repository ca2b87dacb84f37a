from typing import Any

import msgspec
import pytest

from services.gateway.requests import request_validation
from shared import errors
from shared.api.embedding import MAX_DIMENSIONS, MAX_INPUT_BYTES, MAX_INPUTS, EmbeddingRequest


def admit(**fields: Any) -> request_validation.Admitted:
    return request_validation.admit_texts(EmbeddingRequest(**{"inputs": ("a",), **fields}))


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"inputs": ("a",) * MAX_INPUTS}, id="the most texts"),
        pytest.param({"inputs": ("é" * (MAX_INPUT_BYTES // 2),)}, id="the most bytes"),
        pytest.param({"inputs": (" ",)}, id="a space, which the model may accept or not"),
        pytest.param({"inputs": ((1,) * (MAX_INPUT_BYTES // 5),)}, id="the most token ids"),
    ],
)
def test_valid_requests_are_accepted(fields: dict[str, Any]) -> None:
    assert admit(**fields).content == fields.get("inputs", ("a",))


@pytest.mark.parametrize(
    "fields",
    [
        {"inputs": []}, {"inputs": [""]}, {"inputs": ["a", ""]}, {"inputs": [[1], []]}, {"inputs": ["a"] * (MAX_INPUTS + 1)}, {"model": ""},
        {"model": "m" * 201},
    ],
    ids=lambda fields: str(fields)[:30],
)  # fmt: skip
def test_lengths_out_of_bounds_are_refused_while_decoding(fields: dict[str, Any]) -> None:
    (field,) = fields
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert({"inputs": ["a"], **fields}, EmbeddingRequest)


def test_one_byte_over_the_limit_is_too_large() -> None:
    with pytest.raises(errors.TooLarge, match=f"{MAX_INPUT_BYTES + 1} bytes"):
        admit(inputs=("a", "b" * MAX_INPUT_BYTES))


def test_token_ids_are_counted_as_they_are() -> None:
    admitted = admit(inputs=((1, 2, 70_000), "abc"))
    assert (admitted.most_prompt_tokens, admitted.likely_prompt_tokens) == (3 + 3 + 2 * 4, 3 + 1 + 2 * 4)
    with pytest.raises(errors.TooLarge):
        admit(inputs=((1,) * (MAX_INPUT_BYTES // 5 + 1),))


def test_claimed_tokens_are_capped_by_the_bytes() -> None:
    assert admit(inputs=("é", "ab")).most_prompt_tokens == 4 + 2 * 4


@pytest.mark.parametrize("dimensions", [0, -1, MAX_DIMENSIONS + 1, 1.0])
def test_dimensions_out_of_bounds_are_refused_while_decoding(dimensions: float) -> None:
    with pytest.raises(msgspec.ValidationError, match="dimensions"):
        msgspec.convert({"inputs": ["a"], "dimensions": dimensions}, EmbeddingRequest)
    assert msgspec.convert({"inputs": ["a"], "dimensions": MAX_DIMENSIONS}, EmbeddingRequest).dimensions == MAX_DIMENSIONS
