"""The README's example: a swarm on a topic, and a stock peer in Node.js that finds it there and calls it."""

import asyncio
import os
import re
import sys
from pathlib import Path

import swarms
from pyhyperswarm import dht, find_node

README = Path(__file__).parents[1] / "README.md"


async def test_a_stock_peer_finds_the_swarm_by_its_topic_and_calls_it(tmp_path: Path) -> None:
    text, nodes = README.read_text(encoding="utf-8"), [str(node) for node in dht.shared()]
    for name, language in (("serve.py", "python"), ("peer.js", "javascript")):
        tmp_path.joinpath(name).write_text(re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)[-1], encoding="utf-8")
    serving = await asyncio.create_subprocess_exec(
        sys.executable, tmp_path / "serve.py", *nodes, env=swarms.VARIABLES, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(swarms.PATIENCE_SECONDS):
            assert serving.stdout is not None
            assert (await serving.stdout.readline()).endswith(b" is announced\n")
            variables = {**os.environ, "NODE_PATH": str(dht.SIDECAR / "node_modules")}
            calling = await asyncio.create_subprocess_exec(
                find_node(), tmp_path / "peer.js", *nodes, env=variables, stdout=asyncio.subprocess.PIPE
            )
            said, _ = await calling.communicate()
        assert (calling.returncode, said) == (0, b"HELLO FROM NODE.JS\n")
    finally:
        serving.kill()
        await serving.wait()
