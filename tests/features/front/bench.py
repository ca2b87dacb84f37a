"""What the mesh adds to an Ollama of the stack's own machine, and what a look for servers costs.  python -m tests.features.front.bench

first   from a request to the first token, of one caller: by the gateway with a key, its mesh and its books, against Ollama itself
look    for servers on a machine that has none
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import msgspec

from bench import report
from bench.report import Options, Rows
from features.front.machine import part as machine
from features.front.rules import sharing
from features.front.rules.local_servers import SharedServer
from features.front.rules.sharing import ServersFile
from tests import stacks
from tests.testnet import free_port

MODEL = "qwen3:8b"
WARM = 20


@contextmanager
def _ollama() -> Iterator[str]:
    port = free_port()
    command = (sys.executable, "-m", "tests.features.front.ollama_standin", str(port))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
        assert process.stdin is not None
        process.stdin.close()


async def _first_token(http: httpx.AsyncClient, path: str, texts: Iterator[str]) -> float:
    """Return the milliseconds to the first line with a token."""
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": next(texts)}]}
    began = time.perf_counter()
    took = 0.0
    async with http.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if not took and _has_token(line):
                took = 1000 * (time.perf_counter() - began)
    assert took
    return took


def _has_token(line: str) -> bool:
    text = line.removeprefix("data: ")
    if not text.startswith("{"):
        return False
    found: dict[str, Any] = json.loads(text)
    return bool(found["choices"] and found["choices"][0]["delta"].get("content") if "choices" in found else found["message"]["content"])


async def _measure_first(rows: Rows, _shared: None, options: Options) -> None:
    texts = (f"Say the number {number} in words, and then three more words of your own." for number in itertools.count())
    with _ollama() as url:
        running = stacks.plan({"INFERENCE_BACKEND": "echo"})
        choice = sharing.choice_file(running.home / "front")
        choice.parent.mkdir()
        choice.write_bytes(msgspec.json.encode(ServersFile((SharedServer(kind="ollama", url=url, models=(MODEL,)),))))
        try:
            await running.up()
            async with running.http(running.api_key) as mesh, httpx.AsyncClient(base_url=url, trust_env=False) as direct:

                async def is_served() -> bool:
                    return any(model["id"] == MODEL for model in (await mesh.get("/v1/models")).json()["data"])

                await stacks.until(is_served, seconds=60, what="Ollama's model is served")
                ways = {
                    "mesh": partial(_first_token, mesh, "/v1/chat/completions", texts),
                    "direct": partial(_first_token, direct, "/api/chat", texts),
                }
                await report.take_turns(ways, WARM)
                for _ in range(options.rounds):
                    took = await report.take_turns(ways, options.requests)
                    added = median(took["mesh"]) - median(took["direct"])
                    rows.alone("added to the first token, p50", added, "ms", at_most=5)
        finally:
            await running.down()


async def _measure_look(rows: Rows, _shared: None, options: Options) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            began = time.perf_counter()
            assert machine._look(Path(folder), os.environ) == (), "something runs here"
            rows.alone("a look that finds nothing", time.perf_counter() - began, "s", at_most=0.3)


if __name__ == "__main__":
    report.run(__doc__, {"first": _measure_first, "look": _measure_look}, limits=(600.0, 200.0), rounds=(5, 1), requests=(100, 30))
