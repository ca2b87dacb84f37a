"""Has a confined process read the header of a GGUF file, while the file's bytes pass by."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from shared import errors
from shared.models.manifest import VersionFacts

_PROGRAM = (sys.executable, "-P", "-m", "services.gateway.models.header_program")
#: For each wait: a large vocabulary takes 2 s.
_SECONDS = 60.0


class HeaderReport(msgspec.Struct, frozen=True):
    """What the process writes."""

    facts: VersionFacts = VersionFacts()
    #: False: it is a later part of a model.
    is_first: bool = True
    #: Why it is no model; empty if it is one.
    problem: str = ""


class HeaderCheck:
    """Call ``feed`` with all bytes of the file, and then ``read``. Created by ``opened``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._input, self._output = process.stdin, process.stdout

    async def feed(self, data: bytes) -> None:
        # The process ends with the header, long before the file.
        with suppress(ConnectionError):
            if not self._input.is_closing():
                self._input.write(data)
                async with asyncio.timeout(_SECONDS):
                    await self._input.drain()

    async def read(self) -> HeaderReport:
        """Raises BadRequest if the file is no model."""
        self._input.close()
        async with asyncio.timeout(_SECONDS):
            try:
                report = msgspec.json.decode(await self._output.readline(), type=HeaderReport)
            except ValueError:
                raise errors.BadRequest("the header of the file can't be read: the process that reads it ended") from None
        if report.problem:
            raise errors.BadRequest(f"the file is no model: {report.problem}")
        return report


@asynccontextmanager
async def opened(size: int) -> AsyncIterator[HeaderCheck]:
    """Raises BadRequest if the header takes too long."""
    # None of the gateway's secrets.
    environment = {"PYTHONPATH": str(Path(__file__).parents[3])}
    process = await asyncio.create_subprocess_exec(
        *_PROGRAM, str(size), str(os.getpid()), env=environment, start_new_session=True,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield HeaderCheck(process)
    except TimeoutError:
        raise errors.BadRequest("the header of the file takes too long to read") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        await process.wait()
