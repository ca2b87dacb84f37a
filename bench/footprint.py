"""The memory of an idle stack, and how long `aicli infer` takes to its first token.

Memory is each service's resident set (RSS) after start-up and one answer. The first token is timed from the start of the
`aicli` process to its first byte on stdout, interpreter included; the real model answers.
"""

import statistics

from bench import processes, report, tenants
from bench.processes import MIB
from bench.report import Options, Rows
from tests.stacks import stack

MODELS = ("smollm2", "echo")
SERVICES = ("auth", "gateway", "metrics", "web")


async def _measure(rows: Rows, _shared: None, options: Options) -> None:
    async with stack(AIMESH_ECHO="1") as running:
        for model in MODELS:
            words = ("infer", "--model", model, "--max-tokens", "8", "Say hello")
            await tenants.first_byte(running, *words)
            took = [await tenants.first_byte(running, *words) for _ in range(options.runs)]
            rows.alone(f"aicli infer to the first token, {model}, median of {options.runs}", statistics.median(took), "s", at_most=0.6)
        held = {name: processes.resident_mb(pid) / MIB for name, pid in (await running.pids()).items() if pid is not None}
        for name in SERVICES:
            rows.alone(f"idle memory of {name}", held[name], "MiB", at_most=110)
        rows.alone("idle memory of inference, engine aside", held["inference"], "MiB")


if __name__ == "__main__":
    report.run(__doc__, {"footprint": _measure}, limits=(600.0, 180.0), runs=(7, 3))
