"""Tells engines apart that may compute different tokens from the same file and seed, so that only equal ones continue an answer. Pure."""

import hashlib
import re
from collections.abc import Iterable, Mapping

#: Beside prebuilt libraries: what tools/engine/wheel.py made them from. See `devices.EngineBuild`.
BUILD_FILE = "aimesh_build.json"
_VARIANT = re.compile(r"/libggml-cpu-(\w+)\.so$", re.MULTILINE)
#: A GPU's free memory and its place in the machine.
_INCIDENTAL = re.compile(r" \([^()]*\) - \d+ \w+ free$| - \d+ \w+ free$")
_ALL_LAYERS = re.compile(r"\b(\d+)/\1 layers to GPU")


def group(maps: str, groups: Mapping[str, str], features: str) -> str:
    """Return the numeric group of the processor's part of llama.cpp: that of the prebuilt variant that is loaded, or of a compiled engine
    all the ``features`` that it uses. ``maps`` is /proc/self/maps. ``groups`` has variants with others in their group."""
    found = _VARIANT.search(maps)
    return features if found is None else groups.get(found[1], found[1])


def identify(build: str, processor: str, gpu: Iterable[str], context: Iterable[object]) -> str:
    """Return a short name that is equal for equal numerics. ``gpu``: llama.cpp's lines about the GPUs and their layers."""
    lines = [_INCIDENTAL.sub("", line) for line in gpu]
    parts = [build, *map(str, context), *lines]
    if not any(_ALL_LAYERS.search(line) for line in lines):
        parts.append(processor)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
