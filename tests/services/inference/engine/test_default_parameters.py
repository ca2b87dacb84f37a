"""The prebuilt libraries have the structs of the headers that llama-cpp-python was written for: as a compiled engine's, field by field."""

import ctypes
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import llama_cpp.llama_cpp as native
import pytest

from tools.engine import compiled, wheel

STRUCTS = ("model", "context", "model_quantize", "sampler_chain")
PRINT = "import json, sys; from tests.services.inference.engine import test_default_parameters as t; json.dump(t.defaults(), sys.stdout)"


def defaults() -> dict[str, object]:
    """Return the default parameters, with the size of each struct. Addresses differ from run to run, so only whether they are null counts.

    Not by bytes, because padding differs, too.
    """
    return {name: _fields(getattr(native, f"llama_{name}_default_params")()) for name in STRUCTS}


def _fields(struct: ctypes.Structure) -> dict[str, object]:
    fields: dict[str, object] = {"size": ctypes.sizeof(struct)}
    for name, *_ in struct._fields_:
        value = getattr(struct, name)
        fields[name] = value if value is None or isinstance(value, (bool, int, float)) else bool(value)
    return fields


def test_default_parameters_are_those_of_a_compiled_engine(tmp_path: Path) -> None:
    built = next(compiled.wheel_folder("cpu").glob("*.whl"), None)
    if built is None:
        pytest.skip("no compiled engine is at hand: BUILD=1 make worker-cpu makes one")
    found = {}
    for name, path in {"prebuilt": wheel.ensure(), "compiled": built}.items():
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path / name)
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path / name}{os.pathsep}{Path.cwd()}"}
        done = subprocess.run([sys.executable, "-c", PRINT], env=environment, capture_output=True, check=True, timeout=120)
        found[name] = json.loads(done.stdout)
    assert found["prebuilt"] == found["compiled"]
    assert found["prebuilt"]["context"]["n_batch"] > 0
