"""The memory of an idle stack, and how long `aicli infer` takes to its first token.

    python -m bench.footprint [--quick] [--runs 7] [--json FILE]

Memory is each service's resident set (RSS) after start-up and one answer. The first token is timed from the start of the
`aicli` process to its first byte on stdout, interpreter included; the real model answers.
"""

import asyncio
import statistics
import sys
import time

from bench import processes, report
from tests.stacks import REPOSITORY, RunningStack, stack

MODELS = ("smollm2", "echo")
SERVICES = ("auth", "gateway", "metrics", "web")
MIB = 1024 * 1024


async def _first_byte(running: RunningStack, model: str) -> float:
    start = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli.main", "infer", "--model", model, "--max-tokens", "8", "Say hello",
        stdout=asyncio.subprocess.PIPE, cwd=REPOSITORY, env=running.environment,
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.read(1), "no answer"
    took = time.perf_counter() - start
    await process.communicate()
    return took


async def _measure(table: report.Table, runs: int) -> None:
    table.expect((*MODELS, "memory"))
    async with stack(AIMESH_ECHO="1") as running:
        for model in MODELS:
            with table.part(model) as rows:
                await _first_byte(running, model)
                took = [await _first_byte(running, model) for _ in range(runs)]
                claim = f"aicli infer to the first token, {model}, median of {runs}"
                rows.append(report.alone(claim, statistics.median(took), "s", at_most=0.6))
        with table.part("memory") as rows:
            pids = await running.pids()
            held = {name: processes.resident_bytes(pid) / MIB for name, pid in pids.items() if pid is not None}
            rows += [report.alone(f"idle memory of {name}", held[name], "MiB", at_most=110) for name in SERVICES]
            rows.append(report.alone("idle memory of inference, engine aside", held["inference"], "MiB"))


if __name__ == "__main__":
    report.run(__doc__, _measure, limits=(600.0, 180.0), runs=(7, 3))
