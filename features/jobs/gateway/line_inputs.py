"""Reads lines from the input files of jobs, and keeps the parts that were read last: lines of one part come one after the other."""

import asyncio
from collections import OrderedDict
from uuid import UUID

import msgspec

from features.files.gateway.file_storage import FileStorage
from features.files.gateway.rules.sealed_parts import PART_BYTES
from features.jobs.gateway.store import ClaimedLine, Job
from shared import errors

_MAX_PARTS = 4


class _Line(msgspec.Struct):
    body: msgspec.Raw


class LineInputs:
    def __init__(self, files: FileStorage) -> None:
        self._files = files
        self._parts: OrderedDict[tuple[UUID, int], bytes] = OrderedDict()
        #: Lines that are claimed together need the same part at once.
        self._reading = asyncio.Lock()

    async def read(self, job: Job, line: ClaimedLine) -> bytes:
        """Return the body of a line. Raises FileDamaged, and Unavailable."""
        first, last = line.start // PART_BYTES, (line.start + line.size - 1) // PART_BYTES
        text = b"".join([await self._part(job, number) for number in range(first, last + 1)])
        start = line.start - first * PART_BYTES
        try:
            return bytes(msgspec.json.decode(text[start : start + line.size], type=_Line).body)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise errors.FileDamaged("the line isn't what was validated", hint="upload the file again") from error

    async def _part(self, job: Job, number: int) -> bytes:
        if job.input_file is None:
            raise errors.FileDamaged("the job has no input", hint="order it again")
        key = job.input_file, number
        async with self._reading:
            if key not in self._parts:
                try:
                    file = await self._files.find_used(job.tenant_id, job.input_file)
                except errors.NotFound as error:
                    raise errors.FileDamaged("the input file of the job is gone", hint="upload the file again") from error
                start = number * PART_BYTES
                pieces = self._files.read(file, start, min(start + PART_BYTES, file.facts.size))
                self._parts[key] = b"".join([piece async for piece in pieces])
            self._parts.move_to_end(key)
            if len(self._parts) > _MAX_PARTS:
                self._parts.popitem(last=False)
            return self._parts[key]
