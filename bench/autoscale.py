"""Simulate days of 10,000 users, and compare what autoscaling costs with an HPA and an oracle. Measure how long a decision takes."""

import time

from bench import report
from bench.report import Options, Rows
from services.metrics.scaling import simulation
from services.metrics.scaling.advice import ScalingState, advise
from services.metrics.scaling.demand import ScalingSnapshot, WorkerReading, read_demand
from services.metrics.scaling.simulation import PoolSimulation, advised, make_pool

USERS, WORKERS = 10_000, 1_000
#: The gateway's default of QUEUE_MOST.
QUEUE_MOST = 1_000


async def _days(rows: Rows, _shared: object, options: Options) -> None:
    for start, most_seconds in ((60, 5), (150, 5), (300, 60)):
        began = time.perf_counter()
        days = [simulation.compare(USERS, start, seed) for seed in range(options.seeds)]
        spent, name = time.perf_counter() - began, f"start {start} s"
        advice, hours = [day["advice"] for day in days], {one: [day[one].gpu_hours for day in days] for one in days[0]}
        rows.alone(f"{name}: p95 wait, worst day", max(day.p95_wait_seconds for day in advice), "s", at_most=most_seconds)
        for rival, most_ratio in (("oracle", 1.25), ("HPA, GPU 70 %", 0.75), ("HPA, slots 70 %", None)):
            rows.paired(f"{name}: GPU time", hours["advice"], "GPU h", rival, hours[rival], at_most=most_ratio)
        rows.alone(f"{name}: direction changes in 10 min", max(day.direction_changes for day in advice), "", at_most=4)
        rows.alone(f"{name}: a simulated day with three scalers", spent / options.seeds, "s", at_most=5)


async def _burst(rows: Rows, _shared: object, options: Options) -> None:
    loads = [simulation.make_load(USERS, seed, burst=10) for seed in range(options.seeds)]
    days = [PoolSimulation(load, advised(make_pool(150)), 150, seed=seed, queue_most=QUEUE_MOST).run() for seed, load in enumerate(loads)]
    rows.alone("burst ×10: most requests in the queue", max(day.max_waiting for day in days), "requests", at_most=QUEUE_MOST)


async def _decisions(rows: Rows, _shared: object, options: Options) -> None:
    workers = [WorkerReading(f"w{number}", ("simulated",), {}, ready=("simulated",), slots=4, slots_used=2) for number in range(WORKERS)]
    snapshots = [ScalingSnapshot(at, tuple(workers)) for at in range(0, 301, 15)]
    pool, state = make_pool(150), ScalingState()
    demand = read_demand(snapshots, pool)
    began = time.perf_counter()
    for second in range(10 * options.seeds):
        _, state = advise(demand, pool, state, 300 + second / 100)
    rows.alone(f"advice for {WORKERS} workers", 1000 * (time.perf_counter() - began) / (10 * options.seeds), "ms", at_most=1)


if __name__ == "__main__":
    report.run(__doc__, {"days": _days, "burst": _burst, "decisions": _decisions}, limits=(480.0, 120.0), seeds=(20, 2))
