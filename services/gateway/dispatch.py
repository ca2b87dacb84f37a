"""Finds the worker that a request runs on, and knows what this gateway has running on each."""

import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from services.gateway import mesh, routing
from services.gateway.routing import Wish
from shared import errors
from shared.directory import Announcement, Entry
from shared.types import Role


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a request waits for, for people."""

    why: str


class Claim:
    """A place on a worker. Use it with ``with``, for as long as the worker runs the request."""

    def __init__(self, worker: Entry, in_flight: routing.InFlight) -> None:
        self.worker = worker
        self._in_flight = in_flight
        self._began_under: Announcement | None = None

    def __enter__(self) -> "Claim":
        self._began_under = self._in_flight.begin(self.worker)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._began_under is not None  # `with` has entered it
        self._in_flight.end(self._began_under)


class Dispatch:
    """One for the gateway."""

    def __init__(self, directory: mesh.Directory, rng: random.Random) -> None:
        self._directory = directory
        self._rng = rng
        self._in_flight = routing.InFlight()

    @property
    def in_flight(self) -> int:
        return self._in_flight.total()

    async def find(self, wish: Wish) -> AsyncGenerator[Waiting | Claim]:
        """What it waits for, as often as that changes, and last its claim. Raises NotReachable where no worker can run it, and
        Overloaded where too many wait already. Close it with ``aclose``; leaving it gives its place in the queue back."""
        candidates = routing.candidates(wish.model, self._directory.usable(Role.WORKER), wish.not_on)
        worker = routing.choose(candidates, self._in_flight, self._rng)
        if worker is None:
            raise errors.NotReachable(f"no worker can run {wish.model} now", hint="see `aicli nodes`")
        yield Claim(worker, self._in_flight)
