from typing import Any
from uuid import UUID

import msgspec
import pytest

from services.gateway.repeats import cache_keys
from services.gateway.repeats.cache_keys import Asked, Question, Use
from shared.api.generation import ChatMessage, FormatKind, OutputFormat, Sampling, Tool
from shared.api.inference import ModelConfig
from shared.types import ModelName, UserId

ADA, BOB = UserId(UUID(int=1)), UserId(UUID(int=2))
SECRET = "s" * 16
PLAIN = Question(ADA, (ChatMessage("user", "hi"),), ModelConfig(model=ModelName("m"), temperature=0))


@pytest.mark.parametrize(
    ("cache_control", "x_cache", "asked"),
    [
        (None, None, Asked.NOTHING),
        ("no-store", None, Asked.OFF),
        ("No-Cache", None, Asked.FRESH),
        ("private, max-age=0", None, Asked.FRESH),
        ("no-cache, no-store", "on", Asked.OFF),
        ("max-age=60", None, Asked.NOTHING),
        (None, "ON", Asked.ON),
        (None, "off", Asked.OFF),
        ("no-cache", "on", Asked.FRESH),
        ("\x00,,,=", "perhaps", Asked.NOTHING),
    ],
)
def test_what_the_headers_say(cache_control: str | None, x_cache: str | None, asked: Asked) -> None:
    assert cache_keys.read_headers(cache_control, x_cache) is asked


@pytest.mark.parametrize(
    ("asked", "sampling", "only_when_asked", "use"),
    [
        (Asked.NOTHING, Sampling(temperature=0), False, Use(read=True, write=True)),
        (Asked.NOTHING, Sampling(seed=0), False, Use(read=True, write=True)),
        (Asked.NOTHING, Sampling(temperature=0), True, Use(read=False, write=False)),
        (Asked.ON, Sampling(temperature=0), True, Use(read=True, write=True)),
        (Asked.FRESH, Sampling(temperature=0), False, Use(read=False, write=True)),
        (Asked.OFF, Sampling(temperature=0), False, Use(read=False, write=False)),
        (Asked.ON, Sampling(temperature=1), False, Use(read=False, write=False)),
        (Asked.ON, Sampling(), False, Use(read=False, write=False)),
    ],
)
def test_who_uses_the_cache(asked: Asked, sampling: Sampling, only_when_asked: bool, use: Use) -> None:
    assert cache_keys.plan(asked, sampling, only_when_asked=only_when_asked) == use


def changed(**fields: Any) -> Question:
    return Question(**{**_fields(PLAIN), **fields})


def _fields(question: Question) -> dict[str, Any]:
    return {"tenant": question.tenant, "prompt": question.prompt, "config": question.config, "digest": question.digest}


def with_config(**fields: Any) -> Question:
    return changed(config=msgspec.structs.replace(PLAIN.config, **fields))


def test_whatever_may_change_an_answer_changes_its_name() -> None:
    others = [
        PLAIN,
        changed(tenant=BOB),
        changed(prompt="hi"),
        changed(prompt=(ChatMessage("system", "hi"),)),
        changed(prompt=(ChatMessage("user", "h"), ChatMessage("user", "i"))),
        changed(digest="d"),
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


def test_every_field_of_a_request_is_in_the_name() -> None:
    # A field that is added to the contract is in the name without anybody thinking of it.
    said = msgspec.msgpack.decode(cache_keys.canonical(ModelConfig(model=ModelName("m"), temperature=0, raw=True)))
    assert said == {"model": "m", "temperature": 0, "raw": True}


def test_the_same_request_has_the_same_name() -> None:
    one = with_config(logit_bias={1: 2.0, 3: 4.0})
    other = with_config(logit_bias={3: 4.0, 1: 2.0})
    assert cache_keys.name(one, SECRET) == cache_keys.name(other, SECRET)


def test_a_name_shows_nothing_of_the_request() -> None:
    name = cache_keys.name(changed(prompt="CANARY"), SECRET)
    assert name.startswith(cache_keys.PREFIX)
    assert set(name.removeprefix(cache_keys.PREFIX)) <= set("0123456789abcdef")
