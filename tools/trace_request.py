"""Count what one streamed prompt runs in the gateway: our own functions, and their files.

    python -m tools.trace_request [--all]

It starts a stack and a second, traced gateway, and warms it up with a few prompts. Then it counts what one more prompt runs, from the
socket to the row in PostgreSQL. The first figure includes the gateway's periodic work during that second; the second figure leaves out
every function that also runs while the gateway is idle.
"""

import argparse
import asyncio
import collections
import json
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from types import CodeType, FrameType

import httpx

REPOSITORY = Path(__file__).resolve().parents[1]
PARTS = ("services", "shared")
MOST_SECONDS = 30.0
#: Long enough to see the periodic work of an idle gateway: the longest period, of listening to PostgreSQL, takes 15 s.
IDLE_SECONDS = 18.0

#: File and function, as "services/gateway/requests/pipeline.py" and "Pipeline.run".
Calls = collections.Counter[tuple[str, str]]


def serve(module: str, report: Path) -> None:
    """Run a service; SIGUSR1 starts counting its calls, SIGUSR2 writes them to the report and starts again."""
    seen: collections.Counter[CodeType] = collections.Counter()

    def count(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            seen[frame.f_code] += 1

    def start(_signal: int, _frame: object) -> None:
        seen.clear()
        sys.setprofile(count)

    def stop(_signal: int, _frame: object) -> None:
        sys.setprofile(None)
        found = [[_place(code), code.co_qualname, calls] for code, calls in seen.items() if _place(code)]
        part = report.with_suffix(".part")
        part.write_text(json.dumps(found), encoding="utf-8")
        part.rename(report)

    signal.signal(signal.SIGUSR1, start)
    signal.signal(signal.SIGUSR2, stop)
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__")


def _place(code: CodeType) -> str:
    """Return the file of one of our functions, relative to the repository's root; empty for others and for parts of functions."""
    path = Path(code.co_filename)
    if code.co_name.startswith("<") or not path.is_relative_to(REPOSITORY):
        return ""
    inside = path.relative_to(REPOSITORY)
    return inside.as_posix() if inside.parts[0] in PARTS else ""


async def trace() -> tuple[Calls, Calls]:
    """Return what ran during the prompt, and while the gateway was idle."""
    # Imported here because the traced service does not need them.
    from tests import replicas, stacks  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "calls.json")
        words = ("-m", "tools.trace_request", "--serve", "services.gateway", "--report", str(report))
        async with (
            stacks.stack(INFERENCE_BACKEND="echo") as stack,
            replicas.replica(stack, "gateway", folder=Path(folder), words=words) as gateway,
        ):
            await gateway.ready()
            headers = {"Authorization": f"Bearer {stack.api_key}"}
            async with httpx.AsyncClient(base_url=gateway.url, headers=headers, trust_env=False, timeout=MOST_SECONDS) as http:
                for _ in range(5):
                    await _send_prompt(http)
                idle = await _count(gateway.process.pid, report, _wait())
                busy = await _count(gateway.process.pid, report, _send_prompt(http))
    return busy, idle


async def _send_prompt(http: httpx.AsyncClient) -> None:
    body = {"messages": [{"role": "user", "content": "one two three"}], "stream": True, "max_tokens": 8}
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        text = b"".join([part async for part in answer.aiter_bytes()])
    if b"[DONE]" not in text:
        raise RuntimeError(f"the prompt was not answered: {text[:500]!r}")
    await asyncio.sleep(0.5)  # its row is written


async def _wait() -> None:
    await asyncio.sleep(IDLE_SECONDS)


async def _count(pid: int, report: Path, work: Awaitable[None]) -> Calls:
    os.kill(pid, signal.SIGUSR1)
    await work
    os.kill(pid, signal.SIGUSR2)
    async with asyncio.timeout(MOST_SECONDS):
        while (calls := _read(report)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return calls


def _read(report: Path) -> Calls | None:
    """Return what the service wrote; None if it has not yet."""
    if not report.exists():
        return None
    found = json.loads(report.read_text(encoding="utf-8"))
    report.unlink()
    return collections.Counter({(place, name): calls for place, name, calls in found})


def summary(calls: Calls) -> str:
    files = {place for place, _ in calls}
    gateway = sum(place.startswith("services/gateway") for place in files)
    return f"{len(calls)} functions in {len(files)} files, {gateway} of them in the gateway; {sum(calls.values())} calls"


def list_all(calls: Calls) -> None:
    for place in sorted({place for place, _ in calls}):
        print(place)
        for (where, name), number in sorted(calls.items()):
            if where == place:
                print(f"    {name} × {number}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="list every file and function")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.report)
        return
    busy, idle = asyncio.run(trace())
    alone = collections.Counter({function: calls for function, calls in busy.items() if function not in idle})
    print(f"during a prompt: {summary(busy)}")
    print(f"for the prompt alone: {summary(alone)}")
    if arguments.all:
        list_all(alone)


if __name__ == "__main__":
    main()
