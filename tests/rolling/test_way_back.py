"""An upgrade and its rollback under load: the new release replaces each service in turn, and then the old one does again."""

import asyncio
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import httpx
import pytest

from shared.types import Tier
from stack import probes, settings, stack_plan, supervisor
from stack.servers.program import Program
from stack.stack_home import StackHome
from tests import people, replicas, stopwatch
from tests.chaos import world
from tests.integration import asking
from tests.replicas import Replica
from tests.rolling import previous_release
from tests.rolling.test_rolling_upgrade import count_rows
from tests.stacks import HEAD, REPOSITORY, Outcome, Release, RunningStack, stack, until

STREAMS, CALLS = 200, 40
#: An answer takes about five seconds, so that each replacement happens in the middle of most of them.
SETTINGS = {
    "INFERENCE_BACKEND": "echo", "ECHO_TOKEN_MS": "200", "HYPERSWARM": "off",
    "DEFAULT_RATE_LIMIT": "1000000", "TIER_ENTERPRISE": "concurrency=1000",
}  # fmt: skip
PROMPT = " ".join(f"word{number}" for number in range(24))
POST = "9000_post_rolling.sql"


def next_version(folder: Path) -> Release:
    """Return this release under a later version, with a migration that stays pending until ``aicli stack migrate --post``."""
    for name in ("services", "features", "shared", "cli", "stack", "sdk/python/src/aimesh"):
        shutil.copytree(REPOSITORY / name, folder / Path(name).name, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    (folder / "aimesh" / "version.py").write_text('__version__ = "9.0.0"\n')
    for name in ("deploy", "docs", "pyproject.toml", "services/web/npm/node_modules"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "services" / "gateway" / "migrations" / POST).write_text("CREATE TABLE after_rolling (number integer);")
    return Release(HEAD.python, folder)


def version_of(release: Release) -> str:
    text = (release.folder / "sdk/python/src/aimesh/version.py").read_text(encoding="utf-8")
    (found,) = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return str(found)


async def is_ready(program: Program) -> bool:
    return program.probe is None or await probes.is_ready(program.probe)


@asynccontextmanager
async def servers_of(home: StackHome) -> AsyncIterator[None]:
    """Run a stack's PostgreSQL, Valkey and NATS, without its services."""
    recorded = settings.read_recorded(home)
    chosen = settings.load(recorded)
    planned = stack_plan.make(home, chosen, recorded, os.environ)
    planned = replace(planned, programs=tuple(program for program in planned.programs if program.stage == 0))
    async with asyncio.TaskGroup() as tasks:
        running = supervisor.Supervisor(home, planned, tasks, chosen.log_retention_days)
        task = tasks.create_task(running.run())
        try:
            for program in planned.programs:
                await until(partial(is_ready, program), seconds=60, what=f"{program.name} is ready")
            yield
        finally:
            running._stop_wanted.set()
            await task


#: Asks the gateway at this URL, and returns the text. Calls the function once the gateway has the request.
Ask = Callable[[httpx.AsyncClient, str, Callable[[], None]], Awaitable[str]]


async def read_stream(http: httpx.AsyncClient, url: str, on_sent: Callable[[], None]) -> str:
    async with http.stream("POST", f"{url}/v1/chat/completions", json=asking.chat_body(PROMPT, stream=True)) as answer:
        on_sent()
        await answer.aread()
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in asking.events(answer))
    assert text == PROMPT, f"{text!r} {answer.text[-500:]}"
    return text


async def read_whole(http: httpx.AsyncClient, url: str, on_sent: Callable[[], None]) -> str:
    async def follow(event: str, _: object) -> None:
        if event == "http11.send_request_body.complete":
            on_sent()

    answer = await http.post(f"{url}/v1/chat/completions", json=asking.chat_body(PROMPT), extensions={"trace": follow})
    assert answer.status_code == 200, answer.text[-500:]
    return str(answer.json()["choices"][0]["message"]["content"])


@dataclass
class Traffic:
    """Requests to the gateway at ``url``, as a load balancer would send them."""

    url: str = ""
    opening: Counter[str] = field(default_factory=Counter)
    finished: Counter[Ask] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    is_over: bool = False

    async def keep_asking(self, http: httpx.AsyncClient, ask: Ask) -> None:
        while not self.is_over:
            opening = [self.url]
            self.opening[self.url] += 1

            def sent(opening: list[str] = opening) -> None:
                if opening:
                    self.opening[opening.pop()] -= 1

            try:
                assert await ask(http, opening[0], sent) == PROMPT
                self.finished[ask] += 1
            except (AssertionError, httpx.HTTPError, ValueError, LookupError) as error:
                if world.BUSY in str(error) and not stopwatch.bounds_hold:
                    continue  # refused with Retry-After before it ran
                self.failures.append(f"{time.monotonic():.1f} {ask.__name__} {error!r}")
                return
            finally:
                sent()

    async def move(self, url: str) -> None:
        """Send new requests to ``url``; running ones stay. Return when the old gateway has received all of its requests."""
        before, self.url = self.url, url

        async def is_quiet() -> bool:
            return self.opening[before] == 0

        await until(is_quiet, seconds=30, what="the old gateway has its requests")


class Fleet:
    """One replica of each service."""

    def __init__(self, running: RunningStack, folder: Path) -> None:
        self._running = running
        self._folder = folder
        self._serving: dict[str, tuple[Replica, AsyncExitStack]] = {}
        self._started = 0
        #: Each start with its time.
        self.steps: list[str] = []

    async def start(self, service: str, release: Release, traffic: Traffic) -> Replica:
        """Start a replica of this release, then stop the current one gracefully."""
        self._started += 1
        self.steps.append(f"{time.monotonic():.1f} {service} of {release.folder.name}")
        opened = AsyncExitStack()
        name = f"{service}-{self._started}"
        started = await opened.enter_async_context(
            replicas.replica(
                self._running, service, folder=self._folder, name=name, release=release, settings=self._settings(service, name)
            )
        )
        before, self._serving[service] = self._serving.get(service), (started, opened)
        await started.ready()
        if service == "gateway":
            await traffic.move(started.url)
        if before is not None:
            before[0].process.terminate()
            assert await before[0].ended() == 0, before[0].log[-2000:]
            await before[1].aclose()
        return started

    def _settings(self, service: str, name: str) -> dict[str, str]:
        if service == "inference":
            return {"ECHO_TOKEN_MS": SETTINGS["ECHO_TOKEN_MS"]}
        if service == "web":
            return {"GATEWAY_URL": self._serving["gateway"][0].url}
        return {"RECOVERY_LOG_DIR": str(self._folder / f"{name}.recovery")} if service == "auth" else {}

    async def close(self) -> None:
        for _, opened in self._serving.values():
            await opened.aclose()


@pytest.mark.timeout(600)
async def test_each_service_is_replaced_and_taken_back_under_load(tmp_path: Path) -> None:
    previous = await asyncio.to_thread(previous_release.find)
    before = version_of(previous)
    head = await asyncio.to_thread(next_version, tmp_path / "head")
    async with stack(previous, **SETTINGS) as old, people.api_client(old) as api_client:
        ann = await api_client.register("ann", Tier.ENTERPRISE)
        assert (await old.aicli("stack", "down")).status == 0
        new = RunningStack(old.home, old.environment, head)
        fleet, traffic = Fleet(old, tmp_path), Traffic()
        async with servers_of(old.place):
            try:
                for service in replicas.ROLES:
                    await fleet.start(service, previous, traffic)
                async with old.http(ann.key.secret) as http, asyncio.TaskGroup() as tasks:
                    for _ in range(STREAMS):
                        tasks.create_task(traffic.keep_asking(http, read_stream))
                    for _ in range(CALLS):
                        tasks.create_task(traffic.keep_asking(http, read_whole))
                    for service in replicas.ROLES:
                        await fleet.start(service, head, traffic)
                        if service == "auth":
                            refused = await new.aicli("stack", "migrate", "--post")
                            assert (refused.status, "gateway" in refused.err, f"({before})" in refused.err) == (2, True, True), refused.err
                    for service in reversed(list(replicas.ROLES)):
                        await fleet.start(service, previous, traffic)
                    traffic.is_over = True
                assert traffic.failures == [], fleet.steps
                assert traffic.finished[read_stream] > 3 * STREAMS
                assert traffic.finished[read_whole] > 3 * CALLS
                await count_rows(old, ann, traffic.finished.total())
                verified = await old.aicli("admin", "ledger", "verify")
                assert verified.status == 0, verified.err
                assert POST in pending_post(await new.aicli("stack", "migrate", "--status", "--json"))
                # Upgrade for good.
                for service in replicas.ROLES:
                    await fleet.start(service, head, traffic)
                assert pending_post(await new.aicli("stack", "migrate", "--post", "--json")) == []
            finally:
                await fleet.close()


def pending_post(done: Outcome) -> list[str]:
    return [name for row in done.json() for name in row["pending_post"]]
