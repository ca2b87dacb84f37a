"""The files of one model, each with a sound header: the check before llama.cpp is told the path."""

import os
from collections.abc import Iterator
from pathlib import Path

from services.inference.engine.gguf import gguf_header
from services.inference.engine.gguf.gguf_header import GgufHeader, NotAModel

#: llama.cpp holds all of them open at once, and the process may open confinement.MAX_OPEN_FILES.
MAX_PARTS = 512


def check(path: Path) -> GgufHeader:
    """Read the headers of the model at ``path``, of all its parts if it was split; raises NotAModel, which names the file.
    What the first part says."""
    first = _read(path)
    for number, part in enumerate(_further_parts(path, first), start=1):
        header = _read(part)
        if (header.split_number, header.split_count) != (number, first.split_count):
            raise NotAModel(
                f"{part}: it says that it is part {header.split_number + 1} of {header.split_count}, "
                f"and should be part {number + 1} of {first.split_count}"
            )
    return first


def _further_parts(path: Path, first: GgufHeader) -> Iterator[Path]:
    """Named as llama.cpp will look for them."""
    if first.split_number:
        raise NotAModel(f"{path}: it is part {first.split_number + 1} of {first.split_count}; a model is opened by its first part")
    if first.split_count == 1:
        return
    if first.split_count > MAX_PARTS:
        raise NotAModel(f"{path}: it says that it has {first.split_count} parts; at most {MAX_PARTS} are taken")
    ending = _ending(1, first.split_count)
    if not path.name.endswith(ending) or path.name == ending:
        raise NotAModel(f"{path}: it is the first of {first.split_count} parts, so its name must end with {ending}")
    for number in range(2, first.split_count + 1):
        yield path.with_name(path.name.removesuffix(ending) + _ending(number, first.split_count))


def _ending(number: int, count: int) -> str:
    return f"-{number:05}-of-{count:05}.gguf"


def _read(path: Path) -> GgufHeader:
    try:
        # Opening a pipe would wait for somebody to write into it.
        if not path.is_file():
            raise NotAModel("there is no such file")
        with path.open("rb") as file:
            return gguf_header.read_header(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise NotAModel(f"{path}: it cannot be read: {error.strerror}") from error
    except NotAModel as error:
        raise NotAModel(f"{path}: {error}") from error
