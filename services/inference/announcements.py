"""Whether the owner of the machine has paused its worker: a file that is there or not, looked for twice a second."""

import asyncio
from collections.abc import Callable
from pathlib import Path

#: Reading one directory entry costs nothing, and a person who has paused it looks at the GPU's fan after a second.
LOOK_SECONDS = 0.5
WHY = "paused by its owner"


class WorkerPause:
    def __init__(self, file: Path | None) -> None:
        self._file = file
        #: As of the last look.
        self.is_on = file is not None and file.exists()

    async def watch(self, changed: Callable[[], None], look_seconds: float = LOOK_SECONDS) -> None:
        """Call ``changed`` whenever it begins or ends. Ends by cancellation, or at once where no file was named."""
        while self._file is not None:
            await asyncio.sleep(look_seconds)
            is_on = self._file.exists()
            if is_on != self.is_on:
                self.is_on = is_on
                changed()
