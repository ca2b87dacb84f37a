"""What an idle stack holds in memory, and how long a person waits for `aicli infer`.

    python -m bench.footprint [--runs 7] [--json FILE]

Memory is each service's resident set (RSS) after start-up and one answer. The first token is timed from the start of the
`aicli` process to its first byte on stdout, interpreter included; the real model answers.
"""

import asyncio
import statistics
import sys
import time
from pathlib import Path

import uvloop

from bench import report
from tests.stacks import REPOSITORY, RunningStack, stack

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


async def _run(runs: int) -> list[report.Row]:
    async with stack(AIMESH_ECHO="1") as running:
        rows = []
        for model in ("smollm2", "echo"):
            await _first_byte(running, model)
            took = [await _first_byte(running, model) for _ in range(runs)]
            claim = f"aicli infer to the first token, {model}, median of {runs}"
            rows.append(report.alone(claim, statistics.median(took), "s", at_most=0.6))
        programs = await running.programs()
        for name in SERVICES:
            pid = programs[name].pid
            assert pid is not None
            rows.append(report.alone(f"idle memory of {name}", resident_mib(pid), "MiB", at_most=110))
        worker = programs["inference"].pid
        assert worker is not None
        rows.append(report.alone("idle memory of inference, engine aside", resident_mib(worker), "MiB"))
        return rows


def main() -> None:
    parser = report.arguments(__doc__)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    report.publish(uvloop.run(_run(options.runs)), options.json)


if __name__ == "__main__":
    main()
