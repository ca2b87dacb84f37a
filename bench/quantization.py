"""The default model in Q8_0, as set-up writes it, against the packaged Q4_1 and a copy in Q4_0: perplexity and tokens per second.

One thread of this processor; times are processor time. The text is the repository's page of the architecture.
"""

import ctypes
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp.llama_cpp as native
import numpy as np

from bench import report
from bench.report import Options, Rows
from services.inference.engine import devices
from services.inference.models import model_discovery, requantize

TEXT = Path(__file__).parent.parent / "docs" / "architecture.md"
WINDOW, UNSCORED = 512, 128
STREAMS, STEPS = 32, 10


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
    def context(self, streams: int) -> Iterator[object]:
        parameters = native.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max, parameters.n_batch, parameters.n_ubatch = WINDOW * streams, streams, WINDOW, WINDOW
        parameters.n_threads = parameters.n_threads_batch = 1
        context = native.llama_init_from_model(self._model, parameters)
        yield context
        native.llama_free(context)

    def decode(self, context: object, tokens: list[int], *, at: int | None = None, scored_from: int = 0) -> None:
        """Compute one window, or with ``at`` one token of each stream."""
        self._batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            self._batch.token[index], self._batch.n_seq_id[index] = token, 1
            self._batch.pos[index], self._batch.seq_id[index][0] = (index, 0) if at is None else (at, index)
            self._batch.logits[index] = index >= scored_from
        if native.llama_decode(context, self._batch) != 0:
            raise RuntimeError("llama.cpp could not compute the batch")

    def perplexity(self, tokens: list[int]) -> float:
        losses = []
        size = native.llama_vocab_n_tokens(self._vocabulary)
        with self.context(1) as context:
            for start in range(0, len(tokens) - WINDOW, WINDOW):
                window = tokens[start : start + WINDOW]
                native.llama_memory_clear(native.llama_get_memory(context), True)
                self.decode(context, window, scored_from=UNSCORED)
                for index in range(UNSCORED, WINDOW - 1):
                    logits = np.ctypeslib.as_array(native.llama_get_logits_ith(context, index), (size,)).astype(np.float64)
                    highest = logits.max()
                    losses.append(highest + math.log(np.exp(logits - highest).sum()) - logits[window[index + 1]])
        return math.exp(sum(losses) / len(losses))

    def prefill(self, tokens: list[int]) -> float:
        """Return the prompt tokens per second of processor time."""
        with self.context(1) as context:
            self.decode(context, tokens[:WINDOW], scored_from=WINDOW - 1)
            native.llama_memory_clear(native.llama_get_memory(context), True)
            began = time.process_time()
            self.decode(context, tokens[:WINDOW], scored_from=WINDOW - 1)
            return WINDOW / (time.process_time() - began)

    def answers(self, tokens: list[int], streams: int) -> float:
        """Return the new tokens of so many streams per second of processor time."""
        with self.context(streams) as context:
            self.decode(context, tokens[:streams], at=0)
            began = time.process_time()
            for step in range(1, STEPS + 1):
                self.decode(context, tokens[step : step + streams], at=step)
            return streams * STEPS / (time.process_time() - began)


_SILENT = native.llama_log_callback(lambda *_line: None)


def prepare() -> None:
    """Silence llama.cpp and load its backends."""
    native.llama_log_set(_SILENT, ctypes.c_void_p())
    devices.load_backends()


async def _measure(rows: Rows, _shared: None, options: Options) -> None:
    source = model_discovery.installed()
    prepare()
    packaged, rival = Model(source), f"packaged {source.stem.rpartition('.')[2]}"
    tokens = packaged.tokens(TEXT.read_bytes())[: options.tokens]
    before = packaged.perplexity(tokens)
    with tempfile.TemporaryDirectory() as folder:
        for name, form in {"Q8_0": native.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": native.LLAMA_FTYPE_MOSTLY_Q4_0}.items():
            requantize.requantize(source, Path(folder) / name, form)
            model = Model(Path(folder) / name)
            rows.against(f"{name}: perplexity", model.perplexity(tokens), "", rival, before, at_most=1.02)
            speeds: dict[str, Callable[[Model], float]] = {f"{name}: prompt": lambda each: each.prefill(tokens)}
            for streams in (1, STREAMS):
                speeds[f"{name}: answers, {streams} at once"] = lambda each, streams=streams: each.answers(tokens, streams)  # type: ignore[misc]
            for claim, speed in speeds.items():
                pairs = [(speed(model), speed(packaged)) for _ in range(options.runs)]
                rows.paired(claim, [pair[0] for pair in pairs], "tokens/s", rival, [pair[1] for pair in pairs])


if __name__ == "__main__":
    report.run(__doc__, {"quantization": _measure}, limits=(900.0, 300.0), runs=(5, 2), tokens=(8192, 1024))
