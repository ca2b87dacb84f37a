"""Count what one streamed prompt runs in the gateway: our own functions and nats-py's, and their files.

    python -m tools.trace_request [--all]
    python -m tools.trace_request --plain

It starts a stack and a second, traced gateway, and warms it up with a few prompts. Then it counts what one more prompt runs, from the
socket to the row in PostgreSQL. The first figure includes the gateway's periodic work during that second; the second figure leaves out
every function that also runs while the gateway is idle. With --plain, it counts all calls of Python functions, libraries too: of one plain
request, and of each chunk of a stream, as what a long answer has more than a short one.
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
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import CodeType, FrameType

import httpx

REPOSITORY = Path(__file__).resolve().parents[1]
PARTS = ("services/", "shared/", "nats/")
MAX_SECONDS = 30.0
#: Long enough to see the periodic work of an idle gateway: the longest period, of listening to PostgreSQL, takes 15 s.
IDLE_SECONDS = 18.0

#: For --plain.
PLAIN_REQUESTS, SHORT, LONG = 40, 20, 220
LIBRARIES = "libraries"

#: File and function, as "services/gateway/requests/runs.py" and "Runs.run"; for calls of libraries, LIBRARIES twice.
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
        found = Calls()
        for code, calls in seen.items():
            found[(_place(code), code.co_qualname) if _place(code) else (LIBRARIES, LIBRARIES)] += calls
        part = report.with_suffix(".part")
        part.write_text(json.dumps([[*function, calls] for function, calls in found.items()]), encoding="utf-8")
        part.rename(report)

    signal.signal(signal.SIGUSR1, start)
    signal.signal(signal.SIGUSR2, stop)
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__")


def _place(code: CodeType) -> str:
    """Return the file of a counted function, relative to the repository's root or the installed packages; empty for others and for parts of
    functions."""
    parts = code.co_filename.removeprefix(f"{REPOSITORY}/").rpartition("/site-packages/")[2]
    return parts if parts.startswith(PARTS) and not code.co_name.startswith("<") else ""


Count = Callable[[Awaitable[None]], Awaitable[Calls]]


@asynccontextmanager
async def traced_gateway(**settings: str) -> AsyncIterator[tuple[httpx.AsyncClient, Count]]:
    """Start a stack and a traced gateway, and warm it up. Yields its client, and what counts the calls of some work."""
    # Imported here because the traced service does not need them.
    from tests import replicas, stacks  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "calls.json")
        words = ("-m", "tools.trace_request", "--serve", "services.gateway", "--report", str(report))
        async with (
            stacks.stack(INFERENCE_BACKEND="echo", **settings) as stack,
            replicas.replica(stack, "gateway", folder=Path(folder), words=words) as gateway,
        ):
            await gateway.ready()
            headers = {"Authorization": f"Bearer {stack.api_key}"}
            async with httpx.AsyncClient(base_url=gateway.url, headers=headers, trust_env=False, timeout=MAX_SECONDS) as http:
                for _ in range(5):
                    await _send_prompt(http)
                yield http, partial(_count, gateway.process.pid, report)


async def trace() -> tuple[Calls, Calls]:
    """Return what ran during the prompt, and while the gateway was idle."""
    async with traced_gateway() as (http, count):
        idle = await count(_wait())
        return await count(_send_prompt(http)), idle


async def count_calls() -> tuple[Calls, Calls]:
    """Return the calls of PLAIN_REQUESTS plain requests, and of LONG - SHORT chunks."""
    # So slow that each token is a chunk of its own.
    async with traced_gateway(ECHO_TOKEN_MS="10") as (http, count):  # noqa: S106 - milliseconds

        async def plain() -> None:
            for _ in range(PLAIN_REQUESTS):
                answer = await http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "one"}], "max_tokens": 1})
                answer.raise_for_status()
            await asyncio.sleep(0.5)

        short, long = [await count(_send_prompt(http, "one " * words, words)) for words in (SHORT, LONG)]
        return await count(plain()), long - short


async def _send_prompt(http: httpx.AsyncClient, prompt: str = "one two three", most: int = 8) -> None:
    body = {"messages": [{"role": "user", "content": prompt}], "stream": True, "max_tokens": most}
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
    async with asyncio.timeout(MAX_SECONDS):
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
    calls = Calls({function: number for function, number in calls.items() if function[0] != LIBRARIES})
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
    parser.add_argument("--plain", action="store_true", help="count the calls of one plain request and of one chunk, libraries too")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.report)
        return
    if arguments.plain:
        plain, chunks = asyncio.run(count_calls())
        for what, calls, times in (("plain request", plain, PLAIN_REQUESTS), ("chunk of a stream", chunks, LONG - SHORT)):
            ours = sum(number for (place, _), number in calls.items() if place != LIBRARIES)
            print(f"each {what}: {sum(calls.values()) / times:.1f} calls, {ours / times:.1f} of them ours")
        if arguments.all:
            list_all(chunks)
        return
    busy, idle = asyncio.run(trace())
    alone = collections.Counter({function: calls for function, calls in busy.items() if function not in idle})
    print(f"during a prompt: {summary(busy)}")
    print(f"for the prompt alone: {summary(alone)}")
    if arguments.all:
        list_all(alone)


if __name__ == "__main__":
    main()
