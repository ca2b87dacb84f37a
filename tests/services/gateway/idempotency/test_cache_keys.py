from typing import Any
from uuid import UUID

import msgspec
import pytest

from services.gateway.idempotency import cache_keys
from services.gateway.idempotency.cache_keys import CacheQuestion, CacheRequest, CacheUse
from shared.api.generation import ChatMessage, FormatKind, OutputFormat, Sampling, Tool
from shared.api.inference import ModelConfig
from shared.types import ModelName, UserId

ADA, BOB = UserId(UUID(int=1)), UserId(UUID(int=2))
SECRET = "s" * 16
PLAIN = CacheQuestion(ADA, (ChatMessage("user", "hi"),), ModelConfig(model=ModelName("m"), temperature=0))


@pytest.mark.parametrize(
    ("cache_control", "x_cache", "expected"),
    [
        (None, None, CacheRequest.NOTHING),
        ("no-store", None, CacheRequest.OFF),
        ("No-Cache", None, CacheRequest.FRESH),
        ("private, max-age=0", None, CacheRequest.FRESH),
        ("no-cache, no-store", "on", CacheRequest.OFF),
        ("max-age=60", None, CacheRequest.NOTHING),
        (None, "ON", CacheRequest.ON),
        (None, "off", CacheRequest.OFF),
        ("no-cache", "on", CacheRequest.FRESH),
        ("\x00,,,=", "perhaps", CacheRequest.NOTHING),
    ],
)
def test_headers_control_the_cache(cache_control: str | None, x_cache: str | None, expected: CacheRequest) -> None:
    assert cache_keys.read_headers(cache_control, x_cache) is expected


@pytest.mark.parametrize(
    ("requested", "sampling", "only_when_asked", "use"),
    [
        (CacheRequest.NOTHING, Sampling(temperature=0), False, CacheUse(read=True, write=True)),
        (CacheRequest.NOTHING, Sampling(seed=0), False, CacheUse(read=True, write=True)),
        (CacheRequest.NOTHING, Sampling(temperature=0), True, CacheUse(read=False, write=False)),
        (CacheRequest.ON, Sampling(temperature=0), True, CacheUse(read=True, write=True)),
        (CacheRequest.FRESH, Sampling(temperature=0), False, CacheUse(read=False, write=True)),
        (CacheRequest.OFF, Sampling(temperature=0), False, CacheUse(read=False, write=False)),
        (CacheRequest.ON, Sampling(temperature=1), False, CacheUse(read=False, write=False)),
        (CacheRequest.ON, Sampling(), False, CacheUse(read=False, write=False)),
    ],
)
def test_which_requests_use_the_cache(requested: CacheRequest, sampling: Sampling, only_when_asked: bool, use: CacheUse) -> None:
    assert cache_keys.plan(requested, sampling, only_when_asked=only_when_asked) == use


def test_a_route_may_answer_equal_requests_that_are_not_deterministic() -> None:
    def use(requested: CacheRequest) -> CacheUse:
        return cache_keys.plan(requested, Sampling(), only_when_asked=True, same_requests=True)

    assert use(CacheRequest.NOTHING) == use(CacheRequest.ON) == CacheUse(read=True, write=True)
    assert use(CacheRequest.FRESH) == CacheUse(read=False, write=True)
    assert use(CacheRequest.OFF) == CacheUse(read=False, write=False)


def changed(**fields: Any) -> CacheQuestion:
    return CacheQuestion(**{**_fields(PLAIN), **fields})


def _fields(question: CacheQuestion) -> dict[str, Any]:
    return {"tenant": question.tenant, "prompt": question.prompt, "config": question.config, "digest": question.digest}


def with_config(**fields: Any) -> CacheQuestion:
    return changed(config=msgspec.structs.replace(PLAIN.config, **fields))


def test_anything_that_may_change_an_answer_changes_its_key() -> None:
    others = [
        PLAIN,
        changed(tenant=BOB),
        changed(prompt="hi"),
        changed(prompt=(ChatMessage("system", "hi"),)),
        changed(prompt=(ChatMessage("user", "h"), ChatMessage("user", "i"))),
        changed(digest="d"),
        changed(keep_seconds=60),
        changed(keep_seconds=61),
        with_config(model=ModelName("m2")),
        with_config(max_tokens=5),
        with_config(seed=1),
        with_config(seed=2),
        with_config(n=2),
        with_config(stop=("a",)),
        with_config(stop=("a", "b")),
        with_config(logit_bias={1: 2.0}),
        with_config(top_logprobs=0),
        with_config(format=OutputFormat(FormatKind.JSON)),
        with_config(tools=(Tool("t"),)),
    ]
    names = [cache_keys.name(question, SECRET) for question in others]
    assert len(set(names)) == len(others)
    assert cache_keys.name(PLAIN, "t" * 16) not in names


def test_every_field_of_a_request_is_in_the_key() -> None:
    # A field added to the contract becomes part of the cache key automatically.
    decoded = msgspec.msgpack.decode(cache_keys.canonical(ModelConfig(model=ModelName("m"), temperature=0, raw=True)))
    assert decoded == {"model": "m", "temperature": 0, "raw": True}


def test_equal_requests_have_equal_keys() -> None:
    one = with_config(logit_bias={1: 2.0, 3: 4.0})
    other = with_config(logit_bias={3: 4.0, 1: 2.0})
    assert cache_keys.name(one, SECRET) == cache_keys.name(other, SECRET)


def test_a_key_reveals_nothing_of_its_request() -> None:
    name = cache_keys.name(changed(prompt="CANARY"), SECRET)
    assert name.startswith(cache_keys.PREFIX)
    assert set(name.removeprefix(cache_keys.PREFIX)) <= set("0123456789abcdef")
