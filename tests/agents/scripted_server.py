"""Serve the scripted model on loopback until this is killed, and print its address: `python -m tests.agents.scripted_server`."""

import asyncio

from tests.agents import mesh_with_a_model
from tests.services.inference import fake_http


async def main() -> None:
    async with fake_http.serving(mesh_with_a_model.ANSWERS) as upstream:
        print(upstream.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
