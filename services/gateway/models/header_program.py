"""Reads the header of a GGUF file from stdin: ``python -m services.gateway.models.header_program SIZE PARENT``, started by `header_check`.

The file is a stranger's. The process is confined before it reads a byte, and ends with the header.
"""

import resource
import sys
from typing import BinaryIO, cast

import msgspec

from services.gateway.models.header_check import HeaderReport
from shared import confinement, landlock
from shared.gguf import gguf_header
from shared.gguf.gguf_header import GgufHeader, NotAModel, PoolingKind
from shared.models.manifest import VersionFacts

_CPU_SECONDS, _MEMORY_BYTES = 60, 2 << 30


class _PassingFile:
    """A file that is read once, from its start to its end."""

    def __init__(self, source: BinaryIO) -> None:
        self._source, self._at = source, 0

    def read(self, count: int) -> bytes:
        data = self._source.read(count)
        self._at += len(data)
        return data

    def seek(self, position: int) -> None:
        while self._at < position and self.read(min(1 << 20, position - self._at)):
            pass


def describe(header: GgufHeader) -> VersionFacts:
    pooled = header.pooling_type not in (None, PoolingKind.NONE)
    return VersionFacts(
        architecture=header.architecture or "",
        quantization="+".join(sorted(header.matrix_types))[:100],
        context_tokens=header.context_length or 0,
        embeds=pooled or gguf_header.kv_bytes_per_token(header) == 0,
        sees_images=header.projector is not None,
    )


def main() -> None:
    size, parent = map(int, sys.argv[1:])
    confinement.die_with(parent)
    landlock.restrict(())
    confinement.confine(local_sockets=False)
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    try:
        header = gguf_header.read_header(cast("BinaryIO", _PassingFile(sys.stdin.buffer)), size)
        report = HeaderReport(describe(header), is_first=header.split_number == 0)
    except (NotAModel, MemoryError) as error:
        report = HeaderReport(problem=str(error) or "its header needs too much memory")
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")


if __name__ == "__main__":
    main()
