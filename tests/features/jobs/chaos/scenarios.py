"""Gateways, workers and servers that die or stop while batches run, and while their files are written: F29.

Each line ends exactly once, with the text of an undisturbed run, and is paid once, at the price of the time when its batch began.
"""

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import httpx

from features.jobs.contract import JobState
from shared.timing import restart_policy
from shared.types import RequestId
from tests import people
from tests.chaos import clients, invariants, ledger, world
from tests.chaos.invariants import Allowed
from tests.chaos.ledger import Books
from tests.chaos.scenarios_servers import READY_SECONDS, killed
from tests.chaos.world import AWAY, Outcome, Worker, World
from tests.features.jobs.chaos import haste, job_rows
from tests.features.jobs.chaos.job_rows import Batch
from tests.people import Person
from tests.replicas import Replica
from tests.stacks import until

T = TypeVar("T")

TENANTS, GATEWAYS, WORKERS = 4, 2, 2
#: Of a worker: few, so that batches take a while.
SLOTS = 8
#: Of a line.
WORDS = (20, 60)
#: Between two faults.
PAUSE_SECONDS = (3.0, 8.0)
#: Micro-credits for a token of the prompt and of the answer, before another price is set; batches pay half.
PRICES = (100, 200)
#: With the pauses of lines that were tried again.
END_SECONDS = 420.0
SERVERS = {"postgres": signal.SIGKILL, "nats": signal.SIGKILL}
#: How a line may end whose gateways were lost three times, or whose workers twice within one attempt.
LOST = ("lease_lost_repeatedly", "poison")


@dataclass(slots=True)
class _Batches:
    world: World
    people: list[Person]
    gateways: list[Replica]
    workers: list[Worker]
    #: Of each person: custom id -> prompt, in the order of the lines.
    prompts: list[dict[str, str]]
    #: Of each person.
    ids: list[str] = field(default_factory=list)
    broken: Counter[str] = field(default_factory=Counter)
    stopped: list[Replica | Worker] = field(default_factory=list)
    #: When the last one that was stopped went on.
    woke_at: datetime | None = None

    # --- orders

    async def order(self) -> None:
        for number, (person, prompts) in enumerate(zip(self.people, self.prompts, strict=True)):
            async with self.http(person, self.gateways[number % GATEWAYS]) as http:
                self.ids.append(await order_batch(http, prompts))

    def http(self, person: Person, gateway: Replica) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {person.key.secret}"}
        return httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=clients.DEADLINE_SECONDS, trust_env=False)

    async def read(self) -> list[Batch]:
        return await job_rows.read_batches(self.world.stack, [person.id for person in self.people])

    async def have(self, condition: Callable[[list[Batch]], T | None], what: str, seconds: float = END_SECONDS) -> T:
        async def holds() -> T | None:
            return condition(await self.read())

        return await until(holds, seconds=seconds, what=what, ignoring=AWAY)

    async def results(self, person: int) -> list[dict[str, Any]]:
        """Return the lines of both files of a batch."""
        async with self.http(self.people[person], self.gateways[0]) as http:
            batch = (await http.get(f"/v1/batches/{self.ids[person]}")).raise_for_status().json()
            return await read_results(http, batch)

    # --- faults

    async def kill(self, gateway: Replica) -> None:
        self.broken["gateway killed"] += 1
        gateway.kill()
        await gateway.restart()

    async def kill_worker(self) -> None:
        self.broken["worker killed"] += 1
        worker = self.world.rng.choice(self.workers)
        worker.kill()
        worker.start()

    async def kill_server(self, name: str) -> None:
        self.broken[f"{name} killed"] += 1
        await killed(name, SERVERS[name], seconds=READY_SECONDS + restart_policy.BACKOFF.longest_seconds)(self.world)

    async def stop(self, process: Replica | Worker) -> None:
        """Stop it for longer than the leases of its lines."""
        running = process.process
        if running is None or running.poll() is not None or process in self.stopped:
            return
        self.broken["gateway stopped" if isinstance(process, Replica) else "worker stopped"] += 1
        self.stopped.append(process)
        running.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(self.world.scale.stop_seconds)
        finally:
            self.woke_at = datetime.now(UTC)
            running.send_signal(signal.SIGCONT)
            self.stopped.remove(process)

    async def break_one(self, tasks: asyncio.TaskGroup) -> None:
        rng = self.world.rng
        going = [gateway for gateway in self.gateways if gateway not in self.stopped]
        servers = [name for name in SERVERS if self.world.may_end(name)]
        match rng.choice(("gateway", "worker", "worker", "stop", *servers)):
            case "gateway" if going:
                await self.kill(rng.choice(going))
            case "worker":
                await self.kill_worker()
            case "stop" if not self.stopped:
                processes: list[Replica | Worker] = [*self.gateways, *self.workers]
                tasks.create_task(self.stop(rng.choice(processes)))
            case "gateway" | "stop":
                pass
            case server:
                await self.kill_server(server)

    async def break_while_finalizing(self, *, stops: bool) -> None:
        """Break a gateway that writes the files of a batch: it can't go on meanwhile."""
        while True:
            with suppress(*AWAY):
                async with job_rows.no_files_change(self.world.stack):
                    writers = await until(self._find_writers, seconds=END_SECONDS, what="files are written")
                    for writer in writers if isinstance(writers, list) else ():
                        self.broken["while finalizing"] += 1
                        if not stops:
                            writer.kill()
                break
        if isinstance(writers, list):
            await asyncio.gather(*(self.stop(writer) if stops else writer.restart() for writer in writers))

    async def _find_writers(self) -> list[Replica] | bool:
        """Return the gateways that write files; true if there is nothing left to write."""
        batches = await self.read()
        names = {batch.runner for batch in batches if batch.state is JobState.FINALIZING and batch.is_taken}
        return [gateway for gateway in self.gateways if gateway.node in names] or all(batch.has_ended for batch in batches)


async def f29_batches_run(world: World) -> Outcome:
    async with _opened(world) as batches:
        await batches.order()
        await batches.have(lambda found: all(batch.state is JobState.IN_PROGRESS for batch in found), "the lines are valid")
        await batches.have(
            lambda found: len({line.runner for batch in found for line in batch.running}) == GATEWAYS, "both gateways run lines"
        )
        began = time.monotonic()
        changed = await world.stack.aicli("admin", "prices", "set", clients.MODEL, "--input", ".0003", "--output", ".0004")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(batches.stop(batches.gateways[1]))
            await batches.kill_worker()
            await batches.kill(batches.gateways[0])
            if world.scale.line_lease_seconds is None:
                await _storm(batches, tasks)
            else:
                await batches.break_while_finalizing(stops=False)
        await batches.have(lambda found: all(batch.has_ended for batch in found), "all batches end")
        ended_at = time.monotonic()
        assert changed.status == 0, changed
        return await _judge(world, batches, began, ended_at)


async def _storm(batches: _Batches, tasks: asyncio.TaskGroup) -> None:
    """Break processes as long as lines run."""

    async def while_finalizing() -> None:
        await batches.break_while_finalizing(stops=False)
        await batches.break_while_finalizing(stops=True)

    finalizing = tasks.create_task(while_finalizing())
    while not finalizing.done():
        await asyncio.sleep(batches.world.rng.uniform(*PAUSE_SECONDS))
        await batches.break_one(tasks)


async def order_batch(http: httpx.AsyncClient, prompts: Mapping[str, str], headers: Mapping[str, str] | None = None) -> str:
    """Order a batch of these prompts, by custom id; return its id."""
    bodies = {name: {"model": clients.MODEL, "messages": [{"role": "user", "content": prompt}]} for name, prompt in prompts.items()}
    lines = ({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body} for name, body in bodies.items())
    content = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    sent = await http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("lines.jsonl", content)}, headers=headers)
    order = {"input_file_id": sent.json()["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return str((await http.post("/v1/batches", json=order, headers=headers)).json()["id"])


async def read_results(http: httpx.AsyncClient, batch: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Return the lines of both files of a batch."""
    names = [name for name in (batch["output_file_id"], batch["error_file_id"]) if name is not None]
    texts = [(await http.get(f"/v1/files/{name}/content", headers=headers)).raise_for_status().text for name in names]
    return [json.loads(line) for text in texts for line in text.splitlines()]


@asynccontextmanager
async def _opened(running: World) -> AsyncIterator[_Batches]:
    """Let two gateways and two workers run the lines, and no others. Afterward everything is as before."""
    stack, lease, each = running.stack, running.scale.line_lease_seconds, running.scale.lines // TENANTS
    for worker in running.workers:
        worker.kill()
    workers = [Worker(stack, worker.number, worker.attempts, SLOTS) for worker in running.workers[:WORKERS]]
    async with people.api_client(stack) as api_client:
        tenants = [await api_client.register(f"batch{number}") for number in range(TENANTS)]
    prompts = [
        {
            f"p{person}n{number}": " ".join(f"p{person}n{number}w{word}" for word in range(running.rng.randint(*WORDS)))
            for number in range(each)
        }
        for person in range(TENANTS)
    ]
    hasty = {} if lease is None else {haste.LINE_LEASE: str(lease)}
    try:
        for worker in workers:
            worker.start()
        async with world.other_gateways(running, GATEWAYS, {}, hasty) as gateways:
            await running.workers_serve(WORKERS)
            yield _Batches(running, tenants, gateways, workers, prompts)
    finally:
        for worker in workers:
            worker.kill()


# --- the judge -----------------------------------------------------------------------------------------------------------


async def _judge(running: World, batches: _Batches, began: float, ended_at: float) -> Outcome:
    found = await batches.read()
    owners = [person.id for person in batches.people]
    books, wrong = await ledger.read(running.stack, owners), list[str]()
    if running.scale.line_lease_seconds is None:

        async def rests() -> Books | None:
            read = await ledger.read(running.stack, owners)
            return None if read.open else read

        books = await until(rests, seconds=running.scale.lease_seconds, what="at rest", ignoring=AWAY)
    else:
        # A gateway that was stopped before it reserved may do so when it goes on; a later sweep ends that.
        late = await ledger.read(running.stack, owners, batches.woke_at)
        if books.open > late.open:
            wrong.append(f"F29: {books.open - late.open} attempts still hold credits, whose lines others have run")
    results = [await batches.results(person) for person in range(TENANTS)]
    wrong += invariants.violations([], books, Allowed())
    for person, batch in enumerate(found):
        wrong += _of_batch(batch, batches.prompts[person], results[person], books, may_lose=running.scale.line_lease_seconds is None)
    answered = {line["response"]["request_id"] for lines in results for line in lines if line["response"] is not None}
    if answered != set(map(str, books.logged)):
        wrong.append(f"F29: {len(answered)} lines have an answer and {len(books.logged)} requests have a row")
    wrong += await running.verify()
    return Outcome(
        fault="F29",
        what=f"batches of {running.scale.lines:,} lines while gateways, workers and servers are killed and stopped",
        calls=running.scale.lines,
        ends=dict(Counter("done" if line["error"] is None else line["error"]["code"] for lines in results for line in lines)),
        failing_seconds=0,
        longest_pause=0,
        recovered_seconds=ended_at - began,
        books=books.summary(),
        violations=tuple(wrong),
        more=str(dict(batches.broken)),
    )


def _of_batch(batch: Batch, prompts: Mapping[str, str], results: Sequence[Mapping[str, Any]], books: Books, *, may_lose: bool) -> list[str]:
    name, wrong = f"F29: batch {batch.id}", []
    if batch.state is not JobState.COMPLETED or batch.lines:
        wrong.append(f"{name} is {batch.state.value} and has {len(batch.lines)} lines left")
    ids = [line["custom_id"] for line in results]
    if sorted(ids) != sorted(prompts):
        wrong.append(f"{name} has {len(ids)} results, of {len(set(ids))} lines")
    good = [line for line in results if line["error"] is None and line["response"]["status_code"] == 200]
    if [line["custom_id"] for line in good] != [each for each in prompts if each in {line["custom_id"] for line in good}]:
        wrong.append(f"{name} has its results in another order")
    for line in results:
        code = line["error"]["code"] if line["error"] else line["response"]["body"].get("error", {}).get("aimesh_code")
        if line not in good and not (may_lose and code in LOST):
            wrong.append(f"{name}: {line['custom_id']} ended with {code or line['response']}")
    for line in good:
        said = line["response"]["body"]["choices"][0]["message"]["content"]
        if said != prompts[line["custom_id"]]:
            wrong.append(f"{name}: {line['custom_id']} has another text: {said[:60]!r}")
    asked = [line for line in results if line["response"] is not None]
    rows = [books.logged[key] for line in asked if (key := RequestId(UUID(line["response"]["request_id"]))) in books.logged]
    input_tokens, output_tokens = sum(row.prompt_tokens for row in rows), sum(row.completion_tokens for row in rows)
    # What a line that has failed has got until then is counted, and costs nothing.
    paid = [row for row in rows if row.cost_micro]
    cost = sum(row.prompt_tokens * PRICES[0] + row.completion_tokens * PRICES[1] for row in paid) // 2
    counted = (batch.done, batch.failed, batch.input_tokens, batch.output_tokens, batch.cost_micro)
    if counted != (len(good), len(results) - len(good), input_tokens, output_tokens, cost):
        wrong.append(f"{name} counts {counted} and should {(len(good), len(results) - len(good), input_tokens, output_tokens, cost)}")
    if sum(row.cost_micro for row in rows) != cost:
        wrong.append(f"{name}: its rows cost {sum(row.cost_micro for row in rows)} and should {cost}")
    return wrong


SCENARIOS = (f29_batches_run,)
#: Those of `make test`.
SHORT = ("f29_batches_run",)
