"""The prebuilt engine against the one compiled on this machine: prompt and answer tokens per second, in Q8_0 and the packaged Q4_1.

Each round measures both in its own process, one after the other. One thread; times are processor time. It compiles the other engine
once, in about 5 minutes (`BUILD=1 make worker-cpu` uses the same wheel).
"""

import os
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from bench import quantization, report
from bench.report import Options, Rows
from services.inference.models import model_discovery
from stack import processes
from tools.engine import compiled, wheel

#: Of a compiled engine.
AT_LEAST = 0.90
MEASURE_SECONDS = 300.0

Speeds = dict[str, float]


def measure(files: Mapping[str, str]) -> Speeds:
    """Return the tokens per second of the engine that Python finds, for each kind of model."""
    quantization.prepare()
    speeds: Speeds = {}
    for kind, file in files.items():
        model = quantization.Model(Path(file))
        tokens = model.tokens(quantization.TEXT.read_bytes())
        speeds |= {f"{kind}: prompt": model.prefill(tokens), f"{kind}: answer": model.answers(tokens, 1)}
    return speeds


async def measured(engine: Path, files: Mapping[str, str]) -> Speeds:
    environment = {**os.environ, "PYTHONPATH": f"{engine}{os.pathsep}{Path(__file__).parents[1]}"}
    words = (sys.executable, "-m", "bench.prebuilt", "--measure", msgspec.json.encode(files).decode())
    done = await processes.run("measuring an engine", words, MEASURE_SECONDS, env=environment, stderr=None)
    return msgspec.json.decode(done.output, type=Speeds)


async def _compare(rows: Rows, _shared: None, options: Options) -> None:
    source = model_discovery.installed()
    files = {"Q8_0": str(model_discovery.fast_copy(source)), "Q4_1": str(source)}
    with tempfile.TemporaryDirectory() as place:
        engines = {"prebuilt": wheel.ensure(), "compiled": compiled.ensure("cpu")}
        for name, path in engines.items():
            with zipfile.ZipFile(path) as archive:
                archive.extractall(Path(place) / name)
        rounds = [[await measured(Path(place) / name, files) for name in engines] for _ in range(options.runs)]
    for claim in rounds[0][0]:
        ours, others = ([one[at][claim] for one in rounds] for at in range(2))
        rows.paired(claim, ours, "tokens/s", "compiled", others, at_least=AT_LEAST)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(msgspec.json.encode(measure(msgspec.json.decode(sys.argv[2], type=dict[str, str]))).decode())
    else:
        report.run(__doc__, {"prebuilt": _compare}, limits=(1800.0, 900.0), runs=(5, 1))
