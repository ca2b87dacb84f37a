"""Idempotent requests on two gateways that share only a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import Any

import pytest

from services.gateway.idempotency import idempotency_store, idempotent_requests
from services.gateway.idempotency.idempotency_keys import KeyState, KeyUse, NewKeyUse, OrphanedKeyUse, part
from services.gateway.idempotency.idempotency_store import IdempotencyStore
from shared import errors
from shared.timing.backoff import Backoff
from shared.types import NodeId, RequestId
from tests.services.gateway import idempotency_place
from tests.services.gateway.idempotency_place import ADA, BOB, Gateway, Maker, ReceivedAnswer, RunningService, keyed_request, request_id
from tests.testnet import until

F = b"f" * 32
NODE = NodeId("Uone")


@pytest.fixture
async def running_service(postgres_url: str) -> AsyncIterator[RunningService]:
    async with idempotency_place.running_service(postgres_url) as service:
        yield service


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotent_requests, "_BACKOFF", Backoff(0.005, 0.01))


def whole(seed: int = 7, length: int = 5, after: int = 0) -> list[str]:
    return [f"CANARY {seed} {number}" for number in range(after + 1, length + 1)]


def is_whole(received: ReceivedAnswer, seed: int = 7) -> bool:
    return received.texts == whole(seed) and received.numbers == [1, 2, 3, 4, 5] and received.result is not None and received.error is None


async def until_running(gateway: Gateway, runs: int = 1) -> None:
    while len(gateway.maker.seeds) < runs:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


# --- rows -----------------------------------------------------------------------------------------------------------


async def test_one_of_fifty_concurrent_claims_succeeds(running_service: RunningService) -> None:
    claims = await asyncio.gather(*(running_service.store.claim(keyed_request(seed=seed), F, NODE, lease_seconds=9) for seed in range(50)))
    (won,) = [claim for claim in claims if claim is not None]
    assert isinstance(won, NewKeyUse)
    assert (await running_service.row())["seed"] == won.seed


async def test_one_of_fifty_concurrent_takeovers_succeeds(running_service: RunningService) -> None:
    await running_service.store.claim(keyed_request(seed=1), F, NODE, lease_seconds=9)
    await running_service.the_lease_ends()
    claims = await asyncio.gather(
        *(running_service.store.claim(keyed_request(seed=seed), F, NODE, lease_seconds=9) for seed in range(2, 52))
    )
    assert [claim for claim in claims if claim is not None] == [OrphanedKeyUse(1)]


async def test_two_callers_may_use_the_same_key(running_service: RunningService) -> None:
    assert await running_service.store.claim(keyed_request(who=ADA), F, NODE, lease_seconds=9) == NewKeyUse(7)
    assert await running_service.store.claim(keyed_request(who=BOB, seed=8), F, NODE, lease_seconds=9) == NewKeyUse(8)


async def test_a_different_request_does_not_take_over(running_service: RunningService) -> None:
    await running_service.store.claim(keyed_request(), F, NODE, lease_seconds=9)
    await running_service.the_lease_ends()
    assert await running_service.store.claim(keyed_request(), b"g" * 32, NODE, lease_seconds=9) is None


async def test_a_gateway_that_lost_its_lease_changes_nothing(running_service: RunningService) -> None:
    old, new = request_id(), request_id()
    await running_service.store.claim(keyed_request(request=old), F, NODE, lease_seconds=9)
    await running_service.the_lease_ends()
    assert await running_service.store.claim(keyed_request(request=new), F, NODE, lease_seconds=9) == OrphanedKeyUse(7)
    await running_service.store.end(old, KeyState.ENDED, b"late")
    await running_service.store.free(old)
    await running_service.store.abandon(old)
    assert await running_service.store.extend_leases([old, new], seconds=9) == {new: False}
    row = await running_service.row()
    assert (row["request_id"], row["state"], row["answer"]) == (new, "running", None)


async def test_an_ended_request_keeps_its_state_until_it_expires(running_service: RunningService) -> None:
    first = request_id()
    await running_service.store.claim(keyed_request(request=first), F, NODE, lease_seconds=9)
    for answer in (b"one", b"two"):
        await running_service.store.end(first, KeyState.ENDED, answer)
    assert await running_service.store.claim(keyed_request(), F, NODE, lease_seconds=9, dead=first) is None
    held = await running_service.store.find(ADA, "k")
    assert held is not None
    assert (held.state, held.answer) == (KeyState.ENDED, b"one")
    await running_service.sql("UPDATE idempotency_keys SET expires_at = now()")
    assert await running_service.store.claim(keyed_request(seed=9), b"g" * 32, NODE, lease_seconds=9) == NewKeyUse(9)
    assert (await running_service.row())["answer"] is None


async def test_the_sweep_deletes_only_expired_keys(running_service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency_store, "SWEEP_BATCH", 10)
    monkeypatch.setattr(idempotent_requests, "SWEEP_BATCH", 10)
    ids: list[RequestId] = []
    for number in range(35):
        ids.append(request_id())
        await running_service.store.claim(keyed_request(str(number), request=ids[-1]), F, NODE, lease_seconds=900)
    for one in ids[:30]:
        await running_service.store.end(one, KeyState.ENDED, b"a")
    await running_service.sql("UPDATE idempotency_keys SET expires_at = now() WHERE key::int <> 3")
    gateway = await running_service.gateway()
    await gateway.idempotency.sweep()
    left = {row["key"] for row in await running_service.sql("SELECT key FROM idempotency_keys")}
    assert left == {"3", "30", "31", "32", "33", "34"}


# --- repeats --------------------------------------------------------------------------------------------------------


async def test_a_repeat_gets_the_same_answer(running_service: RunningService) -> None:
    gateway, other = await running_service.gateway(), await running_service.gateway("Utwo")
    first = await gateway.ask(keyed_request())
    assert is_whole(first)
    for repeat in (await gateway.ask(keyed_request(seed=8)), await other.ask(keyed_request(seed=9))):
        assert is_whole(repeat)
        assert repeat.result == first.result
    assert (await other.ask(keyed_request(after=3))).texts == whole(after=3)
    assert (await other.ask(keyed_request(), stops_after=2)).numbers == [1, 2], "a reader may leave a stored answer, too"
    assert (gateway.maker.seeds, other.maker.seeds) == ([7], [])
    # An answer that is in PostgreSQL needn't stay in memory.
    assert gateway.recorders._bytes == 0


async def test_fifty_concurrent_requests_run_once(running_service: RunningService) -> None:
    gateway = await running_service.gateway()
    gateway.maker.waits_at = 3
    asking = [asyncio.create_task(gateway.ask(keyed_request(seed=seed))) for seed in range(50)]
    await until_running(gateway)
    gateway.maker.gate.set()
    received = await asyncio.gather(*asking)
    (seed,) = gateway.maker.seeds
    assert all(is_whole(one, seed) for one in received)


async def test_fifty_concurrent_requests_on_two_gateways_run_once(running_service: RunningService) -> None:
    gateways = [await running_service.gateway(), await running_service.gateway("Utwo")]
    received = await asyncio.gather(*(gateways[number % 2].ask(keyed_request(seed=number)) for number in range(50)))
    (seed,) = gateways[0].maker.seeds + gateways[1].maker.seeds
    assert all(is_whole(one, seed) for one in received)


async def test_a_repeat_joins_the_running_answer_where_its_caller_is(running_service: RunningService) -> None:
    gateway = await running_service.gateway()
    gateway.maker.waits_at = 4
    cut = await gateway.ask(keyed_request(), stops_after=2)
    assert cut.numbers == [1, 2]
    rest = asyncio.create_task(gateway.ask(keyed_request(after=2)))
    await asyncio.sleep(0.01)
    gateway.maker.gate.set()
    assert (await rest).texts == whole(after=2)
    assert gateway.maker.seeds == [7]


async def test_an_answer_is_completed_after_its_caller_left(running_service: RunningService) -> None:
    gateway = await running_service.gateway()
    gateway.maker.waits_at = 4
    asking = asyncio.create_task(gateway.ask(keyed_request()))
    await until_running(gateway)
    asking.cancel()
    await asyncio.wait([asking])
    gateway.maker.gate.set()
    assert is_whole(await gateway.ask(keyed_request()))
    assert gateway.maker.seeds == [7]


async def test_an_answer_without_readers_is_canceled_after_a_while(
    running_service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await running_service.gateway()
    gateway.maker.waits_at = 4
    staying = asyncio.create_task(gateway.ask(keyed_request("read")))
    leaving = asyncio.create_task(gateway.ask(keyed_request("left")))
    await until_running(gateway, runs=2)
    leaving.cancel()
    await asyncio.wait([leaving])
    await gateway.idempotency.heartbeat()
    back = await gateway.ask(keyed_request("left"), stops_after=3)
    assert (back.numbers, gateway.maker.seeds) == ([1, 2, 3], [7, 7])
    monkeypatch.setattr(idempotent_requests, "UNREAD_SECONDS", 0.0)
    await gateway.idempotency.heartbeat()
    late = asyncio.create_task(gateway.ask(keyed_request("left", seed=8)))
    await until_running(gateway, runs=3)
    gateway.maker.gate.set()
    assert is_whole(await staying)
    assert is_whole(await late)
    assert gateway.maker.seeds == [7, 7, 7]


async def test_a_reader_that_is_back_keeps_its_answer(running_service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = await running_service.gateway()
    gateway.maker.waits_at = 4
    leaving = asyncio.create_task(gateway.ask(keyed_request()))
    await until_running(gateway)
    leaving.cancel()
    await asyncio.wait([leaving])
    await gateway.idempotency.heartbeat()
    back = asyncio.create_task(gateway.ask(keyed_request()))
    await until(lambda: all(one.recording.is_read for one in gateway.idempotency._recorders._recorders.values()))
    monkeypatch.setattr(idempotent_requests, "UNREAD_SECONDS", 0.0)
    await gateway.idempotency.heartbeat()
    gateway.maker.gate.set()
    assert is_whole(await back)
    assert gateway.maker.seeds == [7]


async def test_a_different_request_under_the_key_is_always_a_conflict(running_service: RunningService) -> None:
    gateway, other = await running_service.gateway(), await running_service.gateway("Utwo")
    gateway.maker.waits_at = 3
    running = asyncio.create_task(gateway.ask(keyed_request()))
    await until_running(gateway)
    for place in (gateway, other):
        assert isinstance((await place.ask(keyed_request(prompt="ho"))).error, errors.IdempotencyConflict)
    gateway.maker.gate.set()
    assert is_whole(await running)
    for place in (gateway, other):
        assert isinstance((await place.ask(keyed_request(prompt="ho"))).error, errors.IdempotencyConflict)
        assert is_whole(await place.ask(keyed_request()))
    # The same key of another caller is a different key.
    assert is_whole(await other.ask(keyed_request(who=BOB, prompt="ho")))


async def test_stored_answers_cannot_be_read_in_postgresql(running_service: RunningService) -> None:
    gateway = await running_service.gateway()
    await gateway.ask(keyed_request(prompt="a CANARY prompt"))
    assert b"CANARY" not in (await running_service.row())["answer"]
    # The same bytes can't be decrypted as another owner's row.
    await running_service.sql("UPDATE idempotency_keys SET owner = $1", BOB)
    stolen = await gateway.ask(keyed_request(who=BOB, prompt="a CANARY prompt"))
    assert isinstance(stolen.error, errors.AnswerGone)
    assert stolen.texts == []


@pytest.mark.parametrize("error", [errors.Limited("slow down"), errors.Unavailable("away"), errors.BudgetExhausted("no money")])
async def test_a_request_that_failed_before_any_text_runs_again(running_service: RunningService, error: errors.AimeshError) -> None:
    gateway = await running_service.gateway()
    gateway.maker.fails_at, gateway.maker.error = 1, error
    assert (await gateway.ask(keyed_request())).error is error
    gateway.maker = Maker()
    assert is_whole(await gateway.ask(keyed_request(seed=8)), seed=8)


async def test_a_request_that_failed_after_text_repeats_its_error(running_service: RunningService) -> None:
    gateway, other = await running_service.gateway(), await running_service.gateway("Utwo")
    gateway.maker.fails_at = 3
    for place in (gateway, gateway, other):
        received = await place.ask(keyed_request())
        assert received.texts == whole(length=2)
        assert isinstance(received.error, errors.LinkLost)
        assert received.error.message == "gone"
    assert "with a new key" in received.error.hint
    assert (len(gateway.maker.seeds), len(other.maker.seeds)) == (1, 0)
    assert (await running_service.row())["state"] == "failed"


async def test_a_bug_frees_the_key_too(running_service: RunningService) -> None:
    gateway = await running_service.gateway()
    gateway.maker.fails_at, gateway.maker.error = 1, ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await gateway.ask(keyed_request())
    gateway.maker = Maker()
    assert is_whole(await gateway.ask(keyed_request()))


async def test_a_caller_that_cancels_ends_only_its_own_answer(running_service: RunningService) -> None:
    gateway = await running_service.gateway()
    gateway.maker.waits_at = 3
    reading = [asyncio.create_task(gateway.ask(one)) for one in (keyed_request(), keyed_request("other"), keyed_request(who=BOB))]
    await until_running(gateway, runs=3)
    await gateway.idempotency.cancel(ADA, "unknown")
    await gateway.idempotency.cancel(ADA, "k")
    cancelled = await reading[0]
    assert cancelled.texts == whole(length=2)
    assert isinstance(cancelled.error, errors.Cancelled)
    gateway.maker.gate.set()
    assert all(is_whole(one) for one in await asyncio.gather(*reading[1:]))
    # A repeat with this key generates the answer again, and gets the same one.
    assert is_whole(await gateway.ask(keyed_request(seed=8)))


async def test_a_caller_may_cancel_at_any_gateway(running_service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotent_requests, "HEARTBEAT_SECONDS", 3600.0)
    gateway, other = await running_service.gateway(), await running_service.gateway("Utwo")
    gateway.maker.waits_at = 3
    async with gateway.idempotency.running(), asyncio.timeout(30):
        reading = [
            asyncio.create_task(gateway.ask(one))
            for one in (keyed_request(), keyed_request(part("k", 2)), keyed_request("other"), keyed_request(who=BOB))
        ]
        await until_running(gateway, runs=4)
        while not await running_service.listeners():
            pass
        await other.idempotency.cancel(ADA, "k")
        for withdrawn in await asyncio.gather(*reading[:2]):
            assert withdrawn.texts == whole(length=2)
            assert isinstance(withdrawn.error, errors.Cancelled)
        gateway.maker.gate.set()
        assert all(is_whole(one) for one in await asyncio.gather(*reading[2:]))
        # A repeat with this key starts a new run, which isn't withdrawn.
        reading = [asyncio.create_task(other.ask(keyed_request(seed=8)))]
        assert is_whole(await reading[0])


async def test_a_gateway_that_missed_a_cancellation_learns_of_it_with_its_heartbeat(running_service: RunningService) -> None:
    gateway, other = await running_service.gateway(), await running_service.gateway("Utwo")
    gateway.maker.waits_at = 3
    reading = asyncio.create_task(gateway.ask(keyed_request()))
    await until_running(gateway)
    await other.idempotency.cancel(ADA, "k")
    await gateway.idempotency.heartbeat()
    assert isinstance((await reading).error, errors.Cancelled)
    # A takeover starts a new run.
    other.maker.waits_at = 3
    reading = asyncio.create_task(other.ask(keyed_request()))
    await until_running(other)
    await other.idempotency.heartbeat()
    other.maker.gate.set()
    assert is_whole(await reading)


async def test_an_answer_that_timed_out_keeps_what_was_delivered(running_service: RunningService) -> None:
    gateway = await running_service.gateway(most_seconds=0.5)
    gateway.maker.waits_at = 3
    for _ in range(2):
        received = await gateway.ask(keyed_request())
        assert received.texts == whole(length=2)
        assert isinstance(received.error, errors.DeadlineExceeded)
    assert len(gateway.maker.seeds) == 1


async def test_an_answer_too_long_to_store_is_only_repeated_by_its_gateway(
    running_service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotent_requests, "MAX_ANSWER_BYTES", 50)
    gateway, other = await running_service.gateway(), await running_service.gateway("Utwo")
    assert is_whole(await gateway.ask(keyed_request()))
    assert is_whole(await gateway.ask(keyed_request()))
    assert isinstance((await other.ask(keyed_request())).error, errors.AnswerGone)
    assert other.maker.seeds == []


async def test_nothing_is_stored_for_an_answer_that_never_started(running_service: RunningService) -> None:
    gateway = await running_service.gateway()
    assert isinstance((await gateway.ask(keyed_request(after=2))).error, errors.AnswerGone)
    assert gateway.maker.seeds == []
    assert is_whole(await gateway.ask(keyed_request()))


# --- dying gateways --------------------------------------------------------------------------------------------------


async def test_another_gateway_resumes_with_the_same_seed_after_what_the_caller_has(running_service: RunningService) -> None:
    dying, other = await running_service.gateway(), await running_service.gateway("Utwo")
    dying.maker.waits_at = 4
    assert (await dying.ask(keyed_request(), stops_after=2)).numbers == [1, 2]
    await running_service.the_lease_ends()
    rest = await other.ask(keyed_request(after=2, seed=99))
    assert rest.texts == whole(after=2)
    assert rest.numbers == [3, 4, 5]
    assert other.maker.seeds == [7]
    # The dead gateway resumes: its next heartbeat stops its generation, and its end changes nothing.
    before = await running_service.row()
    await dying.idempotency.heartbeat()
    dying.maker.gate.set()
    assert is_whole(await dying.ask(keyed_request()))
    assert await running_service.row() == before


async def test_a_gateway_that_cannot_resume_leaves_the_request_to_the_next(running_service: RunningService) -> None:
    dying, other, third = await running_service.gateway(), await running_service.gateway("Utwo"), await running_service.gateway("Uthree")
    dying.maker.waits_at = 4
    assert (await dying.ask(keyed_request(), stops_after=2)).numbers == [1, 2]
    await running_service.the_lease_ends()
    other.maker.fails_at, other.maker.error = 1, errors.Unavailable("no worker is there")
    for _ in range(2):
        assert isinstance((await other.ask(keyed_request(after=2, seed=98))).error, errors.Unavailable)
    # The caller's answer was generated from the first seed, and continues from it.
    assert (await third.ask(keyed_request(after=2, seed=99))).texts == whole(after=2)
    assert (other.maker.seeds, third.maker.seeds) == ([7, 7], [7])


async def test_a_heartbeat_stops_requests_that_another_gateway_took_over(running_service: RunningService) -> None:
    zombie, other = await running_service.gateway(), await running_service.gateway("Utwo")
    zombie.maker.waits_at = 4
    reading = asyncio.create_task(zombie.ask(keyed_request()))
    await until_running(zombie)
    await running_service.the_lease_ends()
    assert is_whole(await other.ask(keyed_request()))
    await zombie.idempotency.heartbeat()
    received = await reading
    assert received.texts == whole(length=3)
    assert isinstance(received.error, errors.LinkLost)


async def test_a_heartbeat_extends_leases_and_stops_nothing_else(running_service: RunningService) -> None:
    gateway, other = await running_service.gateway(), await running_service.gateway("Utwo")
    gateway.maker.waits_at = 4
    reading = asyncio.create_task(gateway.ask(keyed_request()))
    await until_running(gateway)
    await running_service.the_lease_ends()
    await gateway.idempotency.heartbeat()
    assert (await other.ask(keyed_request(), seconds=0)).error is not None
    gateway.maker.gate.set()
    assert is_whole(await reading)
    assert other.maker.seeds == []


async def test_heartbeats_at_any_moment_stop_nothing(running_service: RunningService) -> None:
    gateway = await running_service.gateway()
    done = False

    async def keep_heartbeats() -> None:
        while not done:
            await gateway.idempotency.heartbeat()
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        group.create_task(keep_heartbeats())
        received = await asyncio.gather(*(gateway.ask(keyed_request(str(number % 40))) for number in range(120)))
        done = True
    assert all(is_whole(one) for one in received)
    assert len(gateway.maker.seeds) == 40


async def test_a_restarted_gateway_takes_over_its_own_requests_immediately(running_service: RunningService) -> None:
    before = await running_service.gateway()
    before.maker.waits_at = 4
    await before.ask(keyed_request(), stops_after=2)
    after = await running_service.gateway()  # the same node, another process
    assert (await after.ask(keyed_request(after=2))).texts == whole(after=2)
    assert after.maker.seeds == [7]


async def test_a_stopping_gateway_releases_its_unfinished_requests_immediately(running_service: RunningService) -> None:
    leaving, other = await running_service.gateway(), await running_service.gateway("Utwo")
    leaving.maker.waits_at = 4
    await leaving.ask(keyed_request(), stops_after=2)
    await running_service.close()
    assert (await other_after(running_service, after=2)).texts == whole(after=2)
    assert other.maker.seeds == []


async def other_after(running_service: RunningService, *, after: int) -> ReceivedAnswer:
    return await (await running_service.gateway("Uthree")).ask(keyed_request(after=after))


async def test_several_answers_are_not_resumed_elsewhere_but_restarted(running_service: RunningService) -> None:
    dying, other = await running_service.gateway(), await running_service.gateway("Utwo")
    dying.maker.waits_at = 4
    await dying.ask(keyed_request(n=2), stops_after=2)
    await running_service.the_lease_ends()
    assert isinstance((await other.ask(keyed_request(n=2, after=2))).error, errors.AnswerGone)
    assert is_whole(await other.ask(keyed_request(n=2)))


async def test_a_repeat_waits_for_another_gateway_and_gets_its_answer(running_service: RunningService) -> None:
    gateway, other = await running_service.gateway(), await running_service.gateway("Utwo")
    gateway.maker.waits_at = 4
    first = asyncio.create_task(gateway.ask(keyed_request()))
    await until_running(gateway)
    repeat = asyncio.create_task(other.ask(keyed_request()))
    await asyncio.sleep(0.03)
    assert not repeat.done()
    gateway.maker.gate.set()
    assert is_whole(await first)
    assert is_whole(await repeat)


async def test_a_repeat_with_little_time_is_told_to_retry(running_service: RunningService) -> None:
    gateway, other = await running_service.gateway(), await running_service.gateway("Utwo")
    gateway.maker.waits_at = 4
    await gateway.ask(keyed_request(), stops_after=1)
    error = (await other.ask(keyed_request(), seconds=2.05)).error
    assert isinstance(error, errors.InProgress)
    assert (error.status, error.retry_after_seconds) == (409, 2)


async def test_a_limited_number_of_repeats_wait_for_another_gateway(
    running_service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotent_requests, "MAX_WAITING", 3)
    gateway, other = await running_service.gateway(), await running_service.gateway("Utwo")
    gateway.maker.waits_at = 4
    await gateway.ask(keyed_request(), stops_after=1)
    repeats = [asyncio.create_task(other.ask(keyed_request())) for _ in range(10)]
    refused: set[asyncio.Task[ReceivedAnswer]] = set()
    while len(refused) < 7:
        refused, _ = await asyncio.wait(repeats, timeout=0.01)
    assert all(isinstance(one.result().error, errors.InProgress) for one in refused)
    gateway.maker.gate.set()
    assert sum(is_whole(one) for one in await asyncio.gather(*repeats)) == 3
    assert other.maker.seeds == []


# --- without PostgreSQL ---------------------------------------------------------------------------------------------


class Flaky(IdempotencyStore):
    """A store whose PostgreSQL a test can make unavailable."""

    def __init__(self, store: IdempotencyStore) -> None:
        super().__init__(store._database)
        self.away = False

    def _check(self) -> None:
        if self.away:
            raise errors.Unavailable("PostgreSQL does not answer")

    async def claim(self, *args: Any, **more: Any) -> KeyUse | None:
        self._check()
        return await super().claim(*args, **more)

    async def end(self, request_id: RequestId, state: KeyState, answer: bytes | None) -> None:
        self._check()
        await super().end(request_id, state, answer)

    async def free(self, request_id: RequestId) -> None:
        self._check()
        await super().free(request_id)

    async def extend_leases(self, requests: Collection[RequestId], *, seconds: float) -> dict[RequestId, bool]:
        self._check()
        return await super().extend_leases(requests, seconds=seconds)


async def test_a_request_that_ended_during_an_outage_of_postgresql_is_not_run_again(running_service: RunningService) -> None:
    store = Flaky(running_service.store)
    gateway = await running_service.gateway(store=store)
    gateway.maker.waits_at = 4
    running = asyncio.create_task(gateway.ask(keyed_request()))
    await until_running(gateway)
    store.away = True
    gateway.maker.gate.set()
    assert is_whole(await running)
    assert isinstance((await gateway.ask(keyed_request())).error, errors.Unavailable)
    with pytest.raises(errors.Unavailable, match="PostgreSQL does not answer"):
        await gateway.idempotency.heartbeat()
    store.away = False
    # Until the store is available again, the answer is read from memory; afterwards from the store.
    assert is_whole(await gateway.ask(keyed_request()))
    assert (await running_service.row())["state"] == "running"
    await gateway.idempotency.heartbeat()
    assert (await running_service.row())["state"] == "ended"
    assert is_whole(await (await running_service.gateway("Utwo")).ask(keyed_request()))
    assert gateway.maker.seeds == [7]


async def test_a_key_that_could_not_be_freed_is_freed_later(running_service: RunningService) -> None:
    store = Flaky(running_service.store)
    gateway = await running_service.gateway(store=store)
    gateway.maker.waits_at = gateway.maker.fails_at = 1
    running = asyncio.create_task(gateway.ask(keyed_request()))
    await until_running(gateway)
    store.away = True
    gateway.maker.gate.set()
    assert isinstance((await running).error, errors.LinkLost)
    store.away = False
    gateway.maker = Maker()
    again = asyncio.create_task(gateway.ask(keyed_request()))
    await asyncio.sleep(0.02)
    assert not again.done()
    await gateway.idempotency.heartbeat()
    assert is_whole(await again)


async def test_a_claim_with_a_lost_response_is_taken_over_by_the_next_repeat(running_service: RunningService) -> None:
    class Loses(Flaky):
        async def claim(self, *args: Any, **more: Any) -> KeyUse | None:
            claimed = await super().claim(*args, **more)
            if isinstance(claimed, NewKeyUse):
                raise errors.Unavailable("the connection died at the commit")
            return claimed

    gateway = await running_service.gateway(store=Loses(running_service.store))
    assert isinstance((await gateway.ask(keyed_request())).error, errors.Unavailable)
    assert is_whole(await gateway.ask(keyed_request(seed=8)))
    assert gateway.maker.seeds == [7]
