from typing import Any

import pytest

from services.inference import jobs
from shared import errors
from shared.api.embedding import MAX_INPUT_BYTES, MAX_INPUTS, Embed
from shared.context import new_request_id
from shared.types import ModelName


def check(**fields: Any) -> None:
    values = {"model": ModelName("smollm2"), "inputs": ("a",), "request_id": new_request_id(), **fields}
    jobs.check_texts(Embed(**values))


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"inputs": ("a",) * MAX_INPUTS}, id="as many texts as may be"),
        pytest.param({"inputs": ("é" * (MAX_INPUT_BYTES // 2),)}, id="as many bytes as may be"),
    ],
)
def test_accepted(fields: dict[str, Any]) -> None:
    check(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"inputs": ("a", "b" * MAX_INPUT_BYTES)}, f"input has {MAX_INPUT_BYTES + 1} bytes", id="one byte too many"),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.BadRequest, match=message):
        check(**fields)
