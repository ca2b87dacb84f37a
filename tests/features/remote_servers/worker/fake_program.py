"""Runs as `python -m tests.features.remote_servers.worker.fake_program PORT FILE`: a server like llama-server, with a child process.

Writes its environment and the child's id to FILE."""

import asyncio
import json
import os
import sys
from pathlib import Path

from tests.features.remote_servers.worker.fake_token_servers import TokenServer
from tests.services.inference.fake_http import serving

ANSWER = "hello"


async def main(port: int, file: Path) -> None:
    child = await asyncio.create_subprocess_exec("sleep", "1000")
    async with serving(TokenServer("llama_cpp", ANSWER).pages(), port):
        file.write_text(json.dumps({"child": child.pid, "environment": dict(os.environ)}))  # noqa: ASYNC240 - nothing else runs here
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
