"""The endpoint for autoscalers."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from features.autoscaling.contract import PoolScaling
from features.autoscaling.metrics.scaling_http import ScalingHttp
from shared import errors
from shared.api.auth import Principal
from shared.types import Credential, Tier, UserId, UserRole

FOUND = PoolScaling(
    pool="l4", ready=2, starting=1, wanted=4, reason="load", waiting=7, oldest_seconds=2.5, expected_wait_seconds=3.5,
    tokens_per_second=100, as_of=datetime(2026, 1, 1, tzinfo=UTC), fresh=True,
)  # fmt: skip


def principal(*scopes: str, role: UserRole = UserRole.ADMIN, networks: tuple[str, ...] = ()) -> Principal:
    user = UserId(UUID(int=1))
    return Principal(user, "alice", role, Tier.FREE, user, key_name="keda", scopes=scopes, networks=networks)


class Client:
    def __init__(self, found: PoolScaling = FOUND, **callers: Principal | errors.AimeshError) -> None:
        self.callers = callers
        self.refusals: list[tuple[str, str, str]] = []
        self.found = found
        self.headers: dict[bytes, bytes] = {}
        self.app = ScalingHttp(
            self._find, self._identify, lambda method, _by, address, error: self.refusals.append((method, address, errors.code_of(error)))
        )

    def _find(self, name: str) -> PoolScaling:
        if name != "l4":
            raise errors.NotFound(f"there is no pool {name!r}")
        return self.found

    async def _identify(self, credential: Credential | None) -> Principal:
        caller = self.callers.get(str(credential), errors.NotAuthenticated("unknown key"))
        if isinstance(caller, errors.AimeshError):
            raise caller
        return caller

    async def get(self, key: str = "", path: str = "/autoscale/v1/l4", method: str = "GET", scheme: str = "Bearer") -> tuple[int, Any]:
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [(b"authorization", f"{scheme} {key}".encode())] if key else []
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "client": ("10.0.0.9", 1234)}
        await self.app(scope, None, send)  # type: ignore[arg-type]  # it receives nothing
        self.headers = dict(sent[0]["headers"])
        return sent[0]["status"], json.loads(sent[1]["body"])


async def test_answer_has_what_keda_and_people_need() -> None:
    client = Client(k=principal("scale:read"))
    assert await client.get("k") == (
        200,
        {
            "pool": "l4", "current": 3, "wanted": 4, "reason": "load", "waiting": 7, "oldest_seconds": 2.5, "expected_wait_seconds": 3.5,
            "tokens_per_second": 100.0, "as_of": "2026-01-01T00:00:00+00:00",
        },
    )  # fmt: skip
    assert client.headers[b"cache-control"] == b"no-store"


async def test_without_fresh_data_there_is_no_number() -> None:
    for stale in (PoolScaling(pool="l4"), PoolScaling(pool="l4", wanted=3, as_of=datetime(2026, 1, 1, tzinfo=UTC))):
        client = Client(stale, k=principal("scale:read"))
        status, body = await client.get("k")
        assert (status, body["code"]) == (503, "unavailable")
        assert "wanted" not in body
        assert client.headers[b"retry-after"] == b"15"


@pytest.mark.parametrize(
    ("key", "status", "code"),
    [
        pytest.param("", 401, "not_authenticated", id="no key"),
        pytest.param("unknown", 401, "not_authenticated", id="unknown key"),
        pytest.param("other", 403, "not_allowed", id="another scope"),
        pytest.param("user", 403, "not_allowed", id="no administrator's key"),
        pytest.param("elsewhere", 403, "not_allowed", id="another network"),
    ],
)
async def test_strangers_are_refused_and_reported(key: str, status: int, code: str) -> None:
    client = Client(
        other=principal("inference:execute"), user=principal("scale:read", role=UserRole.DEVELOPER),
        elsewhere=principal("scale:read", networks=("192.168.0.0/16",)),
    )  # fmt: skip
    found, body = await client.get(key)
    assert (found, body["code"]) == (status, code)
    assert client.refusals == [("metrics.getScaling", "10.0.0.9", code)]


async def test_auth_away_is_no_refusal() -> None:
    client = Client(k=errors.Unavailable("auth does not answer"))
    assert (await client.get("k"))[0] == 503
    assert client.refusals == []


async def test_full_access_is_enough_and_the_scheme_counts() -> None:
    client = Client(k=principal("*"))
    assert (await client.get("k"))[0] == 200
    assert (await client.get("k", scheme="bearer"))[0] == 200
    assert (await client.get("k", scheme="Basic"))[0] == 401
    assert (await client.get("k\u00e9"))[0] == 401


async def test_other_paths_and_methods() -> None:
    client = Client(k=principal("scale:read"))
    assert (await client.get("k", "/autoscale/v1/gone"))[0] == 404
    assert (await client.get("k", method="POST"))[0] == 405
    assert client.headers[b"allow"] == b"GET"
