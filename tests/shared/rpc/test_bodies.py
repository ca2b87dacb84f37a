"""Decoding the bodies of calls."""

import msgspec
import pytest

from shared import errors
from shared.api.auth import GenerateApiKey
from shared.rpc import bodies


def test_refused_request_names_its_field_as_forms_do() -> None:
    body = msgspec.msgpack.encode({"limits": {"requestsPerHour": 0}})
    with pytest.raises(errors.BadRequest, match=r"auth\.generateApiKey: limits\.requestsPerHour must") as refused:
        bodies.decode_request(GenerateApiKey, body, "auth.generateApiKey")
    assert refused.value.field == "requests_per_hour"
