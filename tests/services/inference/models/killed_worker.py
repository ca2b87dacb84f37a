"""`python -m tests.services.inference.models.killed_worker FOLDER PORT KEY` copies from one peer until it is killed, and says how much."""

import asyncio
import sys
from pathlib import Path

from pyhyperswarm import PeerAddress

from tests.services.inference.models.copying import MemoryOrigin, read_source, worker


async def main(folder: Path, port: int, peer: bytes) -> None:
    source = read_source(folder)
    async with worker("killed", folder, [PeerAddress("127.0.0.1", port)]) as made:
        made.peers = [peer]
        copy = made.copy(source, MemoryOrigin(source, is_away=True))
        copy.on_progress = lambda progress: print(progress.from_peers, flush=True)
        await copy.run()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3])))
