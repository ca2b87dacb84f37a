"""Clients that read slowly, leave, repeat requests or arrive all at once: F18, F21, F23, F24."""

import asyncio
import json
import socket
import time
from dataclasses import replace

from shared.api import gateway
from tests.chaos import clients, faulty_worker
from tests.chaos.clients import Clients, Manner
from tests.chaos.history import LEFT, Call
from tests.chaos.invariants import IN_FLIGHT_TOKENS, Allowed
from tests.chaos.oracle import Door
from tests.chaos.world import TOKEN_MS, Outcome, World
from tests.stacks import until

#: A receive buffer that fills up immediately.
SMALL_BUFFER = 4096
#: An event has some 200 bytes, and the kernel buffers up to 4 MB for a reader; this answer is longer.
LONG_ANSWER_WORDS = 32_000
#: The gateway ends a stream if its client reads nothing for this long.
PATIENCE_SECONDS = 45.0
FREED_SECONDS = 1.0
SETTLED_SECONDS = 2.0
REFUSALS = frozenset({"overloaded", "rate_limited", "unavailable"})
COPIES = 3


async def f18_client_reads_nothing(world: World) -> Outcome:
    async with world.clients() as seen:
        async with clients.busy(seen, world.scale.clients // 2):
            await clients.until_streaming(seen, world.scale.clients // 2)
            fault_at = time.monotonic()
            reader = await asyncio.to_thread(_ask_and_read_nothing, world)
            try:
                await asyncio.sleep(PATIENCE_SECONDS)
            finally:
                got = await asyncio.to_thread(_read_the_rest, reader)
            ended_at = time.monotonic()
        whole = b"[DONE]" in got
        outcome = await world.judge(
            "F18", "a client that reads nothing", seen, Allowed(until=fault_at), fault_at=fault_at, recovered_at=ended_at,
            more=f"its stream {'continued' if whole else 'was closed'} after {len(got) // 1024} KiB",
        )  # fmt: skip
    return replace(outcome, violations=(*outcome.violations, *(["F18: the stream was held for its reader"] if whole else [])))


def _ask_and_read_nothing(world: World) -> socket.socket:
    prompt = f"{faulty_worker.FAST} " + "word " * LONG_ANSWER_WORDS
    asked = {"model": clients.MODEL, "messages": [{"role": "user", "content": prompt}], "stream": True, "max_tokens": LONG_ANSWER_WORDS}
    body = json.dumps(asked).encode()
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    opened.settimeout(10)
    opened.connect(("127.0.0.1", int(world.stack.environment["GATEWAY_SERVICE_PORT"])))
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"authorization: Bearer {world.people[0].key.secret}\r\n\r\n"
    )
    opened.sendall(head.encode() + body)
    first = opened.recv(1024)
    assert b" 200 " in first, first
    return opened


def _read_the_rest(opened: socket.socket) -> bytes:
    """Read what has arrived, and close the connection."""
    found = bytearray()
    opened.settimeout(1)
    try:
        while data := opened.recv(65536):
            found += data
    except OSError:
        pass
    finally:
        opened.close()
    return bytes(found)


async def f21_burst(world: World) -> Outcome:
    async with world.clients() as seen:
        fault_at = time.monotonic()
        manner = Manner(words=(20, 40))
        asking = [seen.ask(number, Door.GATEWAY, manner) for number in range(world.scale.burst)]
        ended = await asyncio.gather(*asking)
        recovered_at = time.monotonic()
        refused = [call.ended - call.began for call in ended if call.failed]
        slowest = f", the slowest after {max(refused):.2f} s" if refused else ""
        outcome = await world.judge(
            "F21", f"{world.scale.burst} requests at once", seen, Allowed(codes=REFUSALS), fault_at=fault_at, recovered_at=recovered_at,
            more=f"{len(refused)} refused{slowest}",
        )  # fmt: skip
    statuses = {call.status for call in ended if call.failed} - {429, 503}
    found = [f"F21: refused with {statuses}"] if statuses else []
    return replace(outcome, violations=(*outcome.violations, *found))


async def f23_clients_leave(world: World) -> Outcome:
    """Clients leave at any piece: their slots must be free immediately, and the books must soon show what they got."""
    async with world.clients() as seen:
        async with clients.busy(seen, world.scale.clients, Manner(leaves_within=30)):
            await asyncio.sleep(world.scale.outage_seconds)
            fault_at = time.monotonic()
        left_at = max((call.ended for call in seen.calls if call.ends == (LEFT,)), default=fault_at)
        await until(lambda: _nothing_runs(seen), seconds=FREED_SECONDS + 5, what="the workers are free again")
        freed = time.monotonic() - left_at
        # On a busy machine a piece is in flight for as long as the slowest client waited for one.
        on_their_way = round(1000 * max(call.longest_pause for call in seen.calls) / TOKEN_MS)
        allowed = Allowed(in_flight_tokens=IN_FLIGHT_TOKENS + on_their_way)
        return await world.judge(
            "F23", "clients leave in mid-stream", seen, allowed, fault_at=fault_at, recovered_at=fault_at + freed,
            more=f"{sum(call.ends == (LEFT,) for call in seen.calls)} left; all slots free {freed:.2f} s after the last",
        )  # fmt: skip


async def _nothing_runs(seen: Clients) -> bool:
    return (await seen.mesh.rpc.call(gateway.get_service_health, gateway.GetServiceHealth())).in_flight == 0


async def f24_requests_are_repeated(world: World) -> Outcome:
    """Send the same request with the same key several times at once: all copies must get the same answer, for one payment."""
    async with world.clients() as seen:
        fault_at = time.monotonic()
        groups = await asyncio.gather(*(_repeated(seen, number) for number in range(world.scale.clients)))
        ended_at = time.monotonic()
        ids = [{call.request_id for call in group if call.succeeded} for group in groups]
        # The copies are one request, so the oracle gets only one of them.
        seen.calls[:] = [group[0] for group in groups]
        outcome = await world.judge(
            "F24", f"every request {COPIES} times at once, under one key", seen, Allowed(), fault_at=fault_at, recovered_at=ended_at,
            more=f"{len(groups)} keys, {COPIES} copies each",
        )  # fmt: skip
    found = [f"F24: {len(several)} requests were made of one key" for several in ids if len(several) > 1]
    found += [f"F24: a copy ended with {call.ends}" for group in groups for call in group if call.failed]
    found += ["F24: copies were given different answers" for group in groups if len({call.text for call in group if call.succeeded}) > 1]
    return replace(outcome, violations=(*outcome.violations, *found))


async def _repeated(seen: Clients, number: int) -> list[Call]:
    prompt = seen.prompt(number, 20)
    key = f"repeated-{number}-{seen.rng.getrandbits(64):x}"
    return list(await asyncio.gather(*(seen.ask(number, Door.GATEWAY, Manner(), prompt=prompt, key=key) for _ in range(COPIES))))
