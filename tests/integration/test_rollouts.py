"""Rollouts under load at three gateways: a bad candidate is rolled back without errors for callers, even if a gateway dies."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench import openai_upstream
from tests import replicas
from tests.people import Person
from tests.replicas import Replica
from tests.stacks import RunningStack, until
from tests.testnet import free_port

REFUSAL = b'HTTP/1.1 500 Internal Server Error\r\ncontent-type: application/json\r\ncontent-length: 28\r\n\r\n{"error":{"message":"oops"}}'


@dataclass
class Upstream:
    """An OpenAI-compatible server whose faults a test chooses."""

    port: int = field(default_factory=free_port)
    #: Share of requests that fail.
    fails: float = 0.0
    delay_seconds: float = 0.0
    answered: int = 0
    _rng: random.Random = field(default_factory=lambda: random.Random(5))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                found = openai_upstream._LENGTH.search(head)
                body = await reader.readexactly(int(found[1])) if found else b""
                answer = openai_upstream.answer_to(head, body)
                if not head.startswith(b"GET"):
                    self.answered += 1
                    await asyncio.sleep(self.delay_seconds)
                    answer = REFUSAL if self._rng.random() < self.fails else answer
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Upstream"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        async with server:
            yield self


@dataclass
class Mesh:
    """A stack with three gateways, and a worker for two upstreams."""

    stack: RunningStack
    caller: Person
    gateways: list[Replica]
    good: Upstream
    bad: Upstream
    statuses: list[int] = field(default_factory=list)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def ask(self, http: httpx.AsyncClient) -> None:
        number = next(self._numbers)
        urls = [self.stack.url("gateway"), *(gateway.url for gateway in self.gateways if gateway.process.poll() is None)]
        try:
            answer = await http.post(
                f"{urls[number % len(urls)]}/v1/chat/completions",
                json={"model": "assistant", "messages": [{"role": "user", "content": f"hi {number}"}], "max_tokens": 3},
                headers={"Authorization": f"Bearer {self.caller.key.secret}", "X-Conversation-Id": str(number)},
            )
        except httpx.TransportError:
            # Its gateway was killed. Continue to ask the others.
            self.statuses.append(0)
            return
        self.statuses.append(answer.status_code)

    @asynccontextmanager
    async def load(self, per_second: float = 8) -> AsyncIterator[None]:
        """Send requests until the block ends."""

        async def run() -> None:
            async with httpx.AsyncClient(trust_env=False, timeout=30) as http, asyncio.TaskGroup() as asking:
                while True:
                    asking.create_task(self.ask(http))
                    await asyncio.sleep(1 / per_second)

        task = asyncio.create_task(run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def go_on(self) -> None:
        """Return after ten more answers."""
        wanted = len(self.statuses) + 10

        async def is_done() -> bool:
            return len(self.statuses) >= wanted

        await until(is_done, seconds=20, what="requests go on")

    async def admin(self, *words: str) -> Any:
        done = await self.stack.aicli("admin", *words, "--json")
        assert done.status == 0, done.err
        return done.json()

    async def rollout(self) -> Any:
        return (await self.admin("rollouts", "show", "assistant"))["rollout"]

    async def ended(self, seconds: float) -> Any:
        async def is_over() -> Any:
            found = await self.rollout()
            return None if found["ended_at"] is None else found

        return await until(is_over, seconds=seconds, what="the rollout has ended")


ROUTE = """
routes:
  assistant:
    targets:
      - {name: local, model: good/instant, share: 100}
      - {name: next, model: bad/instant, share: 0}
"""


@asynccontextmanager
async def open_mesh(stack: RunningStack, caller: Person, tmp_path: Path) -> AsyncIterator[Mesh]:
    """Not a fixture: its cleanup needs the running stack."""
    async with AsyncExitStack() as running:
        good, bad = [await running.enter_async_context(Upstream().running()) for _ in range(2)]
        upstreams = tmp_path / "upstreams.toml"
        tables = (
            f'[{name}]\nurl = "http://127.0.0.1:{each.port}/v1"\nprefix = "{name}/"\n' for name, each in (("good", good), ("bad", bad))
        )
        upstreams.write_text("".join(tables))
        settings = {"INFERENCE_BACKEND": "openai", "OPENAI_UPSTREAMS": str(upstreams)}
        worker = await running.enter_async_context(
            replicas.replica(stack, "inference", folder=tmp_path, name="upstreams", settings=settings)
        )
        names = ("second-gateway", "third-gateway")
        gateways = [await running.enter_async_context(replicas.replica(stack, "gateway", folder=tmp_path, name=name)) for name in names]
        for replica in (worker, *gateways):
            await replica.ready()
        found = Mesh(stack, caller, gateways, good, bad)
        (tmp_path / "routes.yaml").write_text(ROUTE)
        await found.admin("config", "apply", "-f", str(tmp_path / "routes.yaml"))

        async def are_served() -> bool:
            targets = next(route for route in await found.admin("routes", "list") if route["name"] == "assistant")["targets"]
            return all(target["workers"] for target in targets)

        await until(are_served, seconds=60, what="the worker serves both models")
        try:
            yield found
        finally:
            await stack.aicli("admin", "rollouts", "abort", "assistant")
            (tmp_path / "routes.yaml").write_text("routes: {assistant: null}")
            await found.admin("config", "apply", "-f", str(tmp_path / "routes.yaml"))


@pytest.mark.nightly("long")
@pytest.mark.timeout(600)
async def test_a_candidate_that_begins_to_fail_is_rolled_back_also_when_a_gateway_dies(
    stack: RunningStack, ann: Person, tmp_path: Path
) -> None:
    async with open_mesh(stack, ann, tmp_path) as mesh, mesh.load():
        await mesh.admin("rollouts", "start", "assistant", "--to", "next", "--steps", "50,100", "--every", "1h")

        async def both_answer() -> bool:
            return mesh.bad.answered >= 30 and mesh.good.answered >= 30

        await until(both_answer, seconds=60, what="both targets answer")
        mesh.bad.fails = 0.2
        began = time.monotonic()
        mesh.gateways[0].process.kill()
        # A minute is enough at two candidate requests a second; a machine that also runs other tests answers fewer.
        found = await mesh.ended(150)
        print(f"rolled back after {time.monotonic() - began:.0f} s: {found['reason']}")
        assert found["state"] == "rolled_back"
        assert found["reason"].startswith("next: ")
        assert "answers failed, local: 0 of " in found["reason"]

        async def is_left_alone() -> bool:
            before = mesh.bad.answered
            await mesh.go_on()
            return mesh.bad.answered == before

        await until(is_left_alone, seconds=20, what="no gateway uses the candidate")
    # Some requests failed with the killed gateway.
    assert mesh.statuses.count(200) >= len(mesh.statuses) - 10


@pytest.mark.nightly("long")
async def test_a_candidate_that_answers_late_is_rolled_back(stack: RunningStack, ann: Person, tmp_path: Path) -> None:
    async with open_mesh(stack, ann, tmp_path) as mesh, mesh.load():
        mesh.good.delay_seconds = mesh.bad.delay_seconds = 0.2

        async def has_a_past() -> bool:
            return len(mesh.statuses) >= 60

        await until(has_a_past, seconds=60, what="the baseline has answered")
        await mesh.admin("rollouts", "start", "assistant", "--to", "next", "--steps", "50", "--every", "1h")
        mesh.bad.delay_seconds = 0.6
        found = await mesh.ended(90)
    assert found["state"] == "rolled_back"
    assert "answers began later than " in found["reason"]
    assert set(mesh.statuses) == {200}


@pytest.mark.nightly("stacks")
async def test_a_good_candidate_takes_over(stack: RunningStack, ann: Person, tmp_path: Path) -> None:
    async with open_mesh(stack, ann, tmp_path) as mesh, mesh.load(12):
        await mesh.admin("rollouts", "start", "assistant", "--to", "next", "--steps", "50,100", "--every", "5s", "--min-requests", "20")
        found = await mesh.ended(90)
        assert (found["state"], found["reason"]) == ("promoted", "all steps are done")

        async def only_the_new_one() -> bool:
            before = mesh.good.answered
            await mesh.go_on()
            return mesh.good.answered == before

        await until(only_the_new_one, seconds=20, what="every gateway uses the new target")
        shown = await mesh.admin("routes", "show", "assistant")
    assert set(mesh.statuses) == {200}
    assert [(target["name"], target["share"], target["order"]) for target in shown] == [("local", 0.0, 1), ("next", 100.0, None)]
