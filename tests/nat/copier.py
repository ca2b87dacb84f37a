"""`python -m tests.nat.copier NAME FOLDER BOOTSTRAP…` says its key, reads the keys of others, copies a file from them, and says how much.

The worker called ``holder`` has the file.
"""

import asyncio
import sys
from pathlib import Path

from pyhyperswarm import PeerAddress

from tests.services.inference.models.copying import MemoryOrigin, read_source, worker


async def _main(name: str, folder: Path, bootstrap: list[str]) -> None:
    loop, source = asyncio.get_running_loop(), read_source(folder)
    async with worker(name, folder, [PeerAddress.parse(text) for text in bootstrap], host=None) as made:
        made.offers(source.whole if name == "holder" else None)
        print(made.key.hex(), flush=True)
        keys = map(bytes.fromhex, (await loop.run_in_executor(None, sys.stdin.readline)).split())
        made.peers = [key for key in keys if key != made.key]
        if name != "holder":
            await made.copy(source, MemoryOrigin(source, is_away=True)).run()
            print(made.progress[-1].from_peers, flush=True)
        # Others read from us.
        await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
