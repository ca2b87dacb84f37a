from typing import Any
from uuid import UUID

import pytest

from services.gateway.idempotency import idempotency_keys
from services.gateway.idempotency.idempotency_keys import (
    AbandonedRequest,
    EndedRequest,
    ExistingKeyUse,
    HeldKey,
    IdempotentRequest,
    KeyState,
    KeyUse,
    NewKeyUse,
    OrphanedKeyUse,
    RunningElsewhere,
    RunningHere,
)
from shared import errors
from shared.api.embedding import EmbeddingRequest
from shared.api.gateway import InferenceRequest
from shared.types import NodeId, RequestId, UserId

ONE, TWO = RequestId(UUID(int=1)), RequestId(UUID(int=2))
HERE, THERE = NodeId("Uhere"), NodeId("Uthere")
SECRET = "s" * 16


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "a\0b", "ä", "\x7f"])
def test_an_invalid_key_is_refused(key: str) -> None:
    with pytest.raises(errors.BadRequest, match="Idempotency-Key"):
        idempotency_keys.check(key)


@pytest.mark.parametrize("key", ["a", "x" * 255, "order 17/2: {again}"])
def test_any_printable_key_is_accepted(key: str) -> None:
    idempotency_keys.check(key)


def held(state: KeyState = KeyState.RUNNING, request: RequestId = ONE, gateway: NodeId = HERE, answer: bytes | None = None) -> HeldKey:
    return HeldKey(b"f", request, state, answer, gateway)


@pytest.mark.parametrize(
    ("row", "own_requests", "result"),
    [
        pytest.param(held(), {ONE}, RunningHere(ONE), id="runs here"),
        pytest.param(held(), {TWO}, AbandonedRequest(ONE), id="this node ran it before a restart"),
        pytest.param(held(gateway=THERE), set(), RunningElsewhere(THERE, ONE), id="runs elsewhere"),
        pytest.param(held(KeyState.ENDED, answer=b"a"), {ONE}, EndedRequest(ONE, b"a"), id="was answered"),
        pytest.param(held(KeyState.FAILED, gateway=THERE), set(), EndedRequest(ONE, None), id="failed, and its answer was too long"),
    ],
)
def test_what_a_repeated_request_finds(row: HeldKey, own_requests: set[RequestId], result: ExistingKeyUse) -> None:
    assert idempotency_keys.classify(row, b"f", node=HERE, own_requests=own_requests) == result


@pytest.mark.parametrize("state", list(KeyState))
def test_another_request_under_the_same_key_is_a_conflict(state: KeyState) -> None:
    with pytest.raises(errors.IdempotencyConflict) as refused:
        idempotency_keys.classify(held(state), b"g", node=HERE, own_requests={ONE})
    assert (refused.value.code, refused.value.status) == ("idempotency_conflict", 409)


@pytest.mark.parametrize("fields", [{"prompt": "ho"}, {"seed": 1}, {"max_tokens": 5}, {"model": "m"}, {"logit_bias": {1: 1.0}}])
def test_the_fingerprint_covers_every_field(fields: dict[str, Any]) -> None:
    one, other = InferenceRequest(prompt="hi"), InferenceRequest(**{"prompt": "hi", **fields})
    prints = {idempotency_keys.fingerprint(one, SECRET), idempotency_keys.fingerprint(other, SECRET)}
    assert len(prints) == 2
    assert idempotency_keys.fingerprint(one, "t" * 16) not in prints


@pytest.mark.parametrize("fields", [{"inputs": ("a",)}, {"inputs": ("ab", "")}, {"inputs": ("b", "a")}, {"model": "m"}, {"dimensions": 2}])
def test_the_fingerprint_of_texts_covers_every_field(fields: dict[str, Any]) -> None:
    one, other = EmbeddingRequest(("a", "b")), EmbeddingRequest(**{"inputs": ("a", "b"), **fields})
    assert idempotency_keys.fingerprint(one, SECRET) == idempotency_keys.fingerprint(EmbeddingRequest(("a", "b")), SECRET)
    assert idempotency_keys.fingerprint(one, SECRET) != idempotency_keys.fingerprint(other, SECRET)


def test_requests_sent_together_have_their_own_keys_and_the_first_has_the_callers() -> None:
    keys = [idempotency_keys.part("k", number) for number in range(16)]
    assert keys[0] == "k"
    assert len(set(keys)) == 16
    assert all(idempotency_keys.is_part(key, "k") for key in keys)
    assert not any(
        idempotency_keys.is_part(key, "k") for key in ("kk", "", "K", *(idempotency_keys.part("l", number) for number in range(3)))
    )
    idempotency_keys.check(idempotency_keys.part("x" * 255, 15))


def test_changing_one_of_several_requests_changes_all_their_fingerprints() -> None:
    a, b, c = (InferenceRequest(prompt=prompt) for prompt in "abc")
    together = [idempotency_keys.digest(each) for each in ([a, b], [b, a], [a], [a, b, c], [a, c])]
    assert len({idempotency_keys.fingerprint(a, SECRET, each) for each in (b"", *together)}) == 6
    assert idempotency_keys.digest([a, b]) == together[0]


@pytest.mark.parametrize(
    ("claimed", "after", "answers", "is_resumption"),
    [
        (NewKeyUse(1), 0, None, True),
        (NewKeyUse(1), 3, None, False),
        (OrphanedKeyUse(1), 0, 4, True),
        (OrphanedKeyUse(1), 3, None, True),
        (OrphanedKeyUse(1), 3, 1, True),
        (OrphanedKeyUse(1), 3, 2, False),
    ],
)
def test_a_resumed_request_gets_a_matching_answer_or_an_error(
    claimed: KeyUse, after: int, answers: int | None, is_resumption: bool
) -> None:
    request = InferenceRequest(prompt="hi", n=answers)
    keyed_request = IdempotentRequest(owner=UserId(UUID(int=1)), key="k", request=request, request_id=ONE, seed=1, after=after)
    if is_resumption:
        idempotency_keys.ensure_can_resume(claimed, keyed_request)
        return
    with pytest.raises(
        errors.AnswerGone,
        match=r"the answer to resume is no longer stored|the gateway that ran this request is gone",
    ):
        idempotency_keys.ensure_can_resume(claimed, keyed_request)
