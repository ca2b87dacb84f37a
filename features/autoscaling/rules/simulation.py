"""Simulates a day of one pool, second by second, to compare the advice with an HPA and with an oracle. Pure."""

import math
import random
import statistics
import sys
from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import msgspec

from features.autoscaling.rules.advice import TARGET_LOAD, TURN_SECONDS, ScalingState, advise
from features.autoscaling.rules.demand import PoolDemand
from shared.worker_pools import WorkerPool

#: Scalers decide as often as an HPA does.
DAY_SECONDS, LOOK_SECONDS = 86_400, 15
#: A worker writes 4 answers at a time, each in 8 s on average.
SLOTS, ANSWER_SECONDS = 4, 8.0
SPEED = SLOTS / ANSWER_SECONDS
#: Requests per second, for each second of the day, and the seconds in which a worker is lost.
SimulatedLoad = tuple[list[float], set[int]]
#: Returns the wanted number of workers.
Scaler = Callable[[PoolDemand], int]


class SimulatedDay(msgspec.Struct, frozen=True):
    gpu_hours: float
    p95_wait_seconds: float = 0.0
    direction_changes: int = 0
    refused: int = 0
    max_waiting: int = 0


def make_load(users: int, seed: int, burst: float | None = None) -> SimulatedLoad:
    """Return a day whose peak is 2.9 times its trough, with three bursts of ×2 to ×4, or one of ``burst``, for 5 to 15 minutes.

    Each user sends a request every 10 minutes, on average.
    """
    draw, swing = random.Random(seed), (2.9 - 1) / (2.9 + 1)  # noqa: S311 - a simulation
    mean, radians = users / 600, 2 * math.pi / DAY_SECONDS
    rates = [mean * (1 - swing * math.cos(radians * second)) for second in range(DAY_SECONDS)]
    for _ in range(3 if burst is None else 1):
        length = draw.randrange(300, 901)
        start, factor = draw.randrange(DAY_SECONDS - length), burst or draw.uniform(2, 4)
        rates[start : start + length] = [rate * factor for rate in rates[start : start + length]]
    return rates, set(draw.sample(range(DAY_SECONDS), 4))


def make_pool(start_seconds: int) -> WorkerPool:
    """Return a pool whose maximum no scaler reaches."""
    return WorkerPool(name="simulated", models=("simulated",), min=1, max=10_000, start_seconds=start_seconds)


def advised(pool: WorkerPool) -> Scaler:
    """Return the scaler that does what advice.py says."""
    state = ScalingState()

    def wanted(demand: PoolDemand) -> int:
        nonlocal state
        advice, state = advise(demand, pool, state, demand.as_of)
        return advice.wanted if advice else demand.ready + demand.starting

    return wanted


def hpa(pool: WorkerPool, *, of_slots: bool = False) -> Scaler:
    """Return Kubernetes' HPA for 70 % GPU (or slots): tolerance 10 %, at most doubles, falls to the highest wish of 5 minutes."""
    wishes: deque[int] = deque(maxlen=300 // LOOK_SECONDS)

    def wanted(demand: PoolDemand) -> int:
        current = demand.ready + demand.starting
        load = demand.slots_used / max(1, demand.slots) if of_slots else _gpu(demand.slots_used, demand.ready)
        # A pod that is not ready counts as idle.
        wish = demand.ready * min(1.0, load) / 0.7
        wishes.append(current if abs(wish - current) <= 0.1 * current else math.ceil(wish))
        wish = min(wishes[-1], max(2 * current, current + 4)) if wishes[-1] > current else min(current, max(wishes))
        return min(max(wish, pool.min), pool.max)

    return wanted


def _gpu(running: int, ready: int) -> float:
    """Return the share of time in which a GPU is in use, which is what its driver reports: one answer uses it as four do."""
    return 1 - math.exp(-running / ready) if ready else 0.0


def oracle_hours(load: SimulatedLoad, start_seconds: int) -> float:
    """Return the GPU hours of a scaler that knows the rates, loads workers as the advice does, and pays for each start."""
    need = [math.ceil(max(load[0][at : at + LOOK_SECONDS]) / (SPEED * TARGET_LOAD)) for at in range(0, DAY_SECONDS, LOOK_SECONDS)]
    ahead = start_seconds // LOOK_SECONDS + 1
    return sum(max(need[at : at + ahead]) for at in range(len(need))) * LOOK_SECONDS / 3600


def most_turns(numbers: Sequence[int]) -> int:
    """Return how often the number changed its direction within 10 minutes, at most."""
    steps = [(look, after > before) for look, (before, after) in enumerate(pairwise(numbers)) if after != before]
    turns = [look for (_, old), (look, new) in pairwise(steps) if old != new]
    return max((sum(0 <= turn - first < TURN_SECONDS / LOOK_SECONDS for turn in turns) for first in turns), default=0)


class PoolSimulation:
    """A pool and its queue. Times are whole seconds."""

    def __init__(self, load: SimulatedLoad, scaler: Scaler, start_seconds: int, *, seed: int = 0, queue_most: int = 10**9) -> None:
        (self._rates, self._losses), self._scaler, self._start_seconds, self._queue_most = load, scaler, start_seconds, queue_most
        self._draw = random.Random(seed)  # noqa: S311 - a simulation
        self._ready = math.ceil(self._rates[0] / (SPEED * TARGET_LOAD))
        #: When each ordered machine is ready.
        self._starting: deque[int] = deque()
        #: Since when how many requests wait, oldest first.
        self._queue: deque[tuple[int, int]] = deque()
        self._running = self._waiting = self._refused = self._max_waiting = self._paid = 0
        #: Seconds of waiting -> requests.
        self._waits: Counter[int] = Counter()
        self._arrived = self._answered = self._busy = self._waited = 0
        #: At each look of the last 5 minutes: arrived, answered, busy slot seconds, seconds waited, share of GPUs in use.
        self._looks: deque[tuple[int, int, int, int, float]] = deque([(0, 0, 0, 0, 0.0)], maxlen=300 // LOOK_SECONDS + 1)
        self._carried = {"arrivals": 0.0, "answers": 0.0}

    def run(self) -> SimulatedDay:
        numbers = []
        for now, rate in enumerate(self._rates):
            if now in self._losses and self._ready:
                # Its requests wait again, before all others.
                self._ready, lost = self._ready - 1, self._running // self._ready
                self._running -= lost
                self._waiting += lost
                self._queue.appendleft((now, lost))
            while self._starting and self._starting[0] <= now:
                self._starting.popleft()
                self._ready += 1
            done = min(self._running, self._count("answers", self._running / ANSWER_SECONDS))
            self._answered += done
            self._running -= done
            arrived = self._count("arrivals", rate)
            taken = max(0, min(arrived, self._queue_most - self._waiting + max(0, self._ready * SLOTS - self._running)))
            self._arrived += arrived
            self._refused += arrived - taken
            self._waiting += taken
            self._queue.append((now, taken))
            self._begin(now)
            self._busy += self._running
            # A worker that stops ends its answers first.
            self._paid += max(self._ready, -(-self._running // SLOTS)) + len(self._starting)
            if now % LOOK_SECONDS == LOOK_SECONDS - 1:
                numbers.append(self._scale(now))
        waits = sorted(self._waits.items())
        totals = accumulate(number for _, number in waits)
        p95 = next(seconds for (seconds, _), total in zip(waits, totals, strict=True) if total >= 0.95 * self._waits.total())
        return SimulatedDay(self._paid / 3600, p95, most_turns(numbers), self._refused, self._max_waiting)

    def _count(self, kind: str, mean: float) -> int:
        """Draw how many events happen in a second, and carry the rest over."""
        drawn = self._carried[kind] + self._draw.gauss(mean, math.sqrt(mean))
        number = max(0, int(drawn))
        self._carried[kind] = drawn - number
        return number

    def _begin(self, now: int) -> None:
        free = min(self._waiting, max(0, self._ready * SLOTS - self._running))
        self._running += free
        self._waiting -= free
        self._max_waiting = max(self._max_waiting, self._waiting)
        while free:
            since, number = self._queue.popleft()
            begun = min(free, number)
            free -= begun
            self._waits[now - since] += begun
            self._waited += begun * (now - since)
            if begun < number:
                self._queue.appendleft((since, number - begun))

    def _scale(self, now: int) -> int:
        self._looks.append((self._arrived, self._answered, self._busy, self._waited, _gpu(self._running, self._ready)))
        new, old = self._looks[-1], self._looks[0]
        at_30, at_240 = (self._looks[max(0, len(self._looks) - 1 - seconds // LOOK_SECONDS)] for seconds in (30, 240))
        wanted = self._scaler(PoolDemand(
            now, self._ready, len(self._starting), (new[0] - at_30[0]) / 30, (new[0] - at_240[0]) / 240, self._waiting,
            slots=self._ready * SLOTS, slots_used=self._running, queue=self._waiting,
            per_replica=SLOTS * (new[1] - at_240[1]) / max(1, new[2] - at_240[2]) if new[1] - at_240[1] >= 20 else None,
            first_text_seconds=(new[3] - old[3]) / max(1, new[0] - old[0]), gpu=statistics.fmean(look[4] for look in self._looks),
        ))  # fmt: skip
        while self._ready + len(self._starting) > wanted and self._starting:
            self._starting.pop()
        self._ready = min(self._ready, wanted)
        self._starting.extend([now + self._start_seconds] * (wanted - self._ready - len(self._starting)))
        return wanted


def compare(users: int, start_seconds: int, seed: int = 0) -> dict[str, SimulatedDay]:
    """Simulate the same day with each scaler."""
    load = make_load(users, seed)
    pool, found = make_pool(start_seconds), {"oracle": SimulatedDay(oracle_hours(load, start_seconds))}
    for name, scaler in (("advice", advised(pool)), ("HPA, GPU 70 %", hpa(pool)), ("HPA, slots 70 %", hpa(pool, of_slots=True))):
        found[name] = PoolSimulation(load, scaler, start_seconds, seed=seed).run()
    return found


# Commands import no rules, which not every machine has, so they run this as a program.
if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(compare(*map(int, sys.argv[1:]))))
