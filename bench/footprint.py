"""What an idle stack holds in memory, and how long a person waits for `aicli infer`.

    python -m bench.footprint [--quick] [--runs 7] [--json FILE]

Memory is each service's resident set (RSS) after start-up and one answer. The first token is timed from the start of the
`aicli` process to its first byte on stdout, interpreter included; the real model answers.
"""

import asyncio
import statistics
import sys
import time
from pathlib import Path

from bench import report
from tests.stacks import REPOSITORY, RunningStack, stack

MODELS = ("smollm2", "echo")
QUICK_RUNS = 3
SERVICES = ("auth", "gateway", "metrics", "web")


def resident_mib(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


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
            programs = await running.programs()
            for name in SERVICES:
                pid = programs[name].pid
                assert pid is not None
                rows.append(report.alone(f"idle memory of {name}", resident_mib(pid), "MiB", at_most=110))
            worker = programs["inference"].pid
            assert worker is not None
            rows.append(report.alone("idle memory of inference, engine aside", resident_mib(worker), "MiB"))


def main() -> None:
    parser = report.arguments(__doc__, limits=(600.0, 180.0), quick=f"{QUICK_RUNS} runs")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    with report.opened(options) as table:
        table.run(_measure(table, QUICK_RUNS if options.quick else options.runs))


if __name__ == "__main__":
    main()
