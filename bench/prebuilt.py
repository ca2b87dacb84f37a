"""The prebuilt engine against the one compiled on this machine: prompt and answer tokens per second, in Q8_0 and the packaged Q4_1.

Each round measures both in its own process, one after the other. One thread; times are processor time. It compiles the other engine
once, in about 5 minutes (`BUILD=1 make worker-cpu` uses the same wheel).
"""

import ctypes
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import llama_cpp.llama_cpp as native
import msgspec

from bench import report
from bench.report import Options, Rows
from services.inference.engine import devices
from services.inference.models import model_discovery
from stack import processes
from tools.engine import compiled, wheel

#: Of a compiled engine.
AT_LEAST = 0.90
MEASURE_SECONDS = 300.0
TEXT = Path(__file__).parent.parent / "docs" / "architecture.md"
WINDOW, STEPS = 512, 10

Speeds = dict[str, float]
_SILENT = native.llama_log_callback(lambda *_line: None)


class Model:
    """One file, loaded with one thread. Its batch holds a window of tokens."""

    def __init__(self, file: Path) -> None:
        self._model = native.llama_model_load_from_file(str(file).encode(), native.llama_model_default_params())
        self._vocabulary = native.llama_model_get_vocab(self._model)
        self._batch = native.llama_batch_init(WINDOW, 0, 1)

    def tokens(self, text: bytes) -> list[int]:
        array = (native.llama_token * len(text))()
        return array[: native.llama_tokenize(self._vocabulary, text, len(text), array, len(text), True, False)]

    @contextmanager
    def context(self) -> Iterator[object]:
        parameters = native.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = WINDOW
        parameters.n_threads = parameters.n_threads_batch = 1
        context = native.llama_init_from_model(self._model, parameters)
        yield context
        native.llama_free(context)

    def decode(self, context: object, tokens: list[int], at: int = 0) -> None:
        """Compute these tokens from this position on, and the logits of the last one."""
        self._batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            self._batch.token[index], self._batch.n_seq_id[index] = token, 1
            self._batch.pos[index], self._batch.seq_id[index][0] = at + index, 0
            self._batch.logits[index] = index == len(tokens) - 1
        if native.llama_decode(context, self._batch) != 0:
            raise RuntimeError("llama.cpp could not compute the batch")

    def prefill(self, tokens: list[int]) -> float:
        """Return the prompt tokens per second of processor time."""
        with self.context() as context:
            self.decode(context, tokens[:WINDOW])
            native.llama_memory_clear(native.llama_get_memory(context), True)
            began = time.process_time()
            self.decode(context, tokens[:WINDOW])
            return WINDOW / (time.process_time() - began)

    def answer(self, tokens: list[int]) -> float:
        """Return the new tokens per second of processor time."""
        with self.context() as context:
            self.decode(context, tokens[:1])
            began = time.process_time()
            for step in range(1, STEPS + 1):
                self.decode(context, tokens[step : step + 1], at=step)
            return STEPS / (time.process_time() - began)


def measure(files: Mapping[str, str]) -> Speeds:
    """Return the tokens per second of the engine that Python finds, for each kind of model."""
    native.llama_log_set(_SILENT, ctypes.c_void_p())
    devices.load_backends()
    speeds: Speeds = {}
    for kind, file in files.items():
        model = Model(Path(file))
        tokens = model.tokens(TEXT.read_bytes())
        speeds |= {f"{kind}: prompt": model.prefill(tokens), f"{kind}: answer": model.answer(tokens)}
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
