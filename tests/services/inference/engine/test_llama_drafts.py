"""Drafts with llama.cpp: several tokens of a sequence at once have the bits of single ones, so an answer's tokens are the same."""

import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import llama_cpp.llama_cpp as native
import msgspec
import numpy as np
import pytest

from services.inference.engine import llama_model, lookup, model_loading
from services.inference.engine.engine_loop import EngineLoop
from services.inference.engine.engine_messages import (
    AnswerProgress,
    GenerationAccepted,
    KvMode,
    KvType,
    KvTypes,
    LoadCommand,
    PreparedPrompt,
    StartGeneration,
    ThoughtBudget,
)
from services.inference.engine.llama_model import LlamaModel
from services.inference.engine.model_loading import NativeLog
from services.inference.engine.sampling import Parameters
from services.inference.models import memory, model_discovery
from services.inference.structured_output import lark
from shared.gguf import gguf_header
from tests import gguf_files, tiers
from tests.gguf_files import LlamaShape
from tests.services.inference.engine.commands import handle

SLOTS, CONTEXT = 4, 768
FILES = {"q8_0": model_discovery.packaged, "q4_1": model_discovery.installed}
#: What `exact` takes on some processor.
EXACT_TYPES = {"f16 keys": KvTypes(KvType.F16, KvType.BF16), "bf16 keys": KvTypes(KvType.BF16, KvType.F16)}
#: Tokens of the sequences before the rows that are compared.
LENGTHS = (5, 64, 130, 513)
ROWS = 1 + lookup.MAX_DRAFTED
#: A page that an answer copies with mistakes.
PAGE = "def add(one: int, two: int) -> int:\n    return one + two\n\n\ndef subtract(one: int, two: int) -> int:\n    return one - two\n"
PROMPT = f"<|im_start|>user\nRepeat this file:\n{PAGE}<|im_end|>\n<|im_start|>assistant\n{PAGE[:40]}"
GREEDY = Parameters(0, 1, 0, 1, max_tokens=40, ignore_eos=True)
WARM = msgspec.structs.replace(GREEDY, temperature=0.7, top_p=0.95, top_k=40)


@contextmanager
def opened(file: Path, mode: KvMode = KvMode.EXACT, **changes: object) -> Iterator[LlamaModel]:
    load = msgspec.structs.replace(LoadCommand(str(file), SLOTS, CONTEXT, 1, 0, mode), **changes)
    with llama_model.opened(load, lambda _: None) as model:
        model.show(())
        yield model


@pytest.fixture(scope="module", params=tiers.by_day(list(FILES), "q8_0", group="long"))
def model(request: pytest.FixtureRequest) -> Iterator[LlamaModel]:
    with opened(FILES[request.param]()) as model:
        yield model


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draft every guess, also those that turned out wrong."""
    for name, value in (("CHANCE", 1.0), ("WEIGHT", 1e9), ("COST", 0.0), ("COST_PER_TOKEN", 1e-9), ("LOSS", 1e9)):
        monkeypatch.setattr(lookup, f"_FIRST_{name}", value)
    monkeypatch.setattr(lookup, "_MAX_SURPRISE", 1.0)


# --- bits ---------------------------------------------------------------------------------------------------------------------------

#: A slot, the position of the first token, the tokens, and whether each has an output.
Piece = tuple[int, int, Sequence[int], bool]


class Bits:
    """Computes batches and returns the logits' bits."""

    def __init__(self, model: LlamaModel) -> None:
        self._model = model
        self._source = random.Random(7)
        native.llama_memory_clear(model._memory, True)

    def draw(self, count: int) -> list[int]:
        return [self._source.randrange(100, self._model._vocabulary.size) for _ in range(count)]

    def compute(self, *pieces: Piece) -> list["np.ndarray[tuple[int], np.dtype[np.int32]]"]:
        model = self._model
        model._decode(model._batch.filled((slot, at, tokens, [is_out] * len(tokens)) for slot, at, tokens, is_out in pieces))
        rows = sum(len(tokens) for _, _, tokens, is_out in pieces if is_out)
        logits = native.llama_get_logits(model._context)
        return list(np.ctypeslib.as_array(logits, (rows, model._vocabulary.size)).view(np.int32).copy()) if rows else []

    def read(self, slot: int, tokens: list[int], size: int) -> None:
        self.cut(slot, 0)
        for at in range(0, len(tokens), size):
            self.compute((slot, at, tokens[at : at + size], False))

    def cut(self, slot: int, length: int) -> None:
        native.llama_memory_seq_rm(self._model._memory, slot, length, -1)


@pytest.fixture(scope="module", params=itertools.product(FILES, EXACT_TYPES), ids="-".join)
def bits(request: pytest.FixtureRequest) -> Iterator[Bits]:
    file, types = request.param
    with opened(FILES[file](), kv_type=EXACT_TYPES[types]) as model:
        yield Bits(model)


def test_rows_of_a_draft_have_the_bits_of_single_steps(bits: Bits) -> None:
    texts = [bits.draw(length) for length in LENGTHS]
    for slot, tokens in enumerate(texts):
        bits.read(slot, tokens, 128)
    drafts = [bits.draw(ROWS) for _ in LENGTHS]
    alone = [[bits.compute((slot, length + at, [drafts[slot][at]], True))[0] for at in range(ROWS)] for slot, length in enumerate(LENGTHS)]
    counts = [tuple(rows if slot == rows % SLOTS else 0 for slot in range(SLOTS)) for rows in range(1, ROWS + 1)]
    # Ragged ones, up to the rows that a step may draw.
    for ragged in (*counts, (1, 1, 1, 1), (8, 1, 4, 2), (2, 3, 5, 7), (14, 1, 1, 1), (0, 9, 0, 8)):
        for slot, length in enumerate(LENGTHS):
            bits.cut(slot, length)
        rows = iter(bits.compute(*((slot, LENGTHS[slot], drafts[slot][:count], True) for slot, count in enumerate(ragged) if count)))
        for slot, count in enumerate(ragged):
            assert all(np.array_equal(next(rows), alone[slot][at]) for at in range(count)), ragged
    # Wrong guesses are cut off, and other tokens computed there.
    others = bits.draw(ROWS)
    bits.cut(3, LENGTHS[3])
    bits.compute((3, LENGTHS[3], others, True))
    bits.cut(3, LENGTHS[3] + 1)
    bits.cut(3, LENGTHS[3])
    again = bits.compute((3, LENGTHS[3], drafts[3], True))
    assert all(np.array_equal(one, other) for one, other in zip(again, alone[3], strict=True))


def test_pieces_of_any_size_leave_the_same_cells(bits: Bits) -> None:
    text = bits.draw(130)
    expected = None
    for size in (1, 2, 7, 16, 17, 63, 64, 65, 100, 127, 128) if tiers.is_nightly() else (1, 17, 64, 128):
        bits.read(0, text, size)
        (row,) = bits.compute((0, len(text), [200], True))
        assert expected is None or np.array_equal(row, expected), size
        expected = row


# --- tokens -------------------------------------------------------------------------------------------------------------------------


def command(parameters: Parameters, grammar: str = "", budget: ThoughtBudget | None = None, **changes: object) -> StartGeneration:
    return msgspec.structs.replace(StartGeneration(1, PreparedPrompt(PROMPT, grammar, budget=budget), parameters, "s"), **changes)


def finish(running: EngineLoop, *commands: StartGeneration) -> tuple[list[AnswerProgress], int, int]:
    """Return the progress of all answers, and the drafted and accepted tokens."""
    for one in commands:
        assert isinstance(handle(running, one), GenerationAccepted)
    found, drafted, accepted = list[AnswerProgress](), 0, 0
    while not running.idle:
        step = running.step()
        assert step is not None
        found += step.progress
        drafted, accepted = drafted + step.drafted, accepted + step.accepted
    return found, drafted, accepted


LINES = lark.grammar(r'/[ -~]+/ ("\n" /[ -~]*/)*')
THOUGHTS = ThoughtBudget(12, "", ("</think>",))
ASKED = {
    "greedy": command(GREEDY),
    "warm": command(WARM),
    "grammar": command(WARM, LINES),
    "penalties": command(msgspec.structs.replace(WARM, repeat_penalty=1.1, frequency_penalty=0.2, presence_penalty=0.1)),
    "logprobs": command(msgspec.structs.replace(WARM, top_logprobs=3)),
    "thoughts": command(WARM, budget=THOUGHTS),
    "bias": command(msgspec.structs.replace(GREEDY, logit_bias=((198, -2.0),))),
    "end": command(msgspec.structs.replace(GREEDY, ignore_eos=False, max_tokens=60)),
}


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("asked", tiers.by_day(list(ASKED), "greedy", "grammar", "penalties", "logprobs", "thoughts", group="long"))
def test_answer_is_that_without_drafts(model: LlamaModel, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    native.llama_memory_clear(model._memory, True)
    running = EngineLoop(model, slots=SLOTS)
    drafted, count, accepted = finish(running, ASKED[asked])
    monkeypatch.setattr(model, "_can_draft", False)
    plain, none, _ = finish(running, ASKED[asked])
    assert [(one.token_ids, one.text, one.logprobs, one.finish) for one in drafted] == [
        (one.token_ids, one.text, one.logprobs, one.finish) for one in plain
    ]
    assert 0 < accepted <= count
    assert none == 0


@pytest.mark.usefixtures("eager")
def test_answer_continues_on_a_worker_without_drafts_and_back(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    native.llama_memory_clear(model._memory, True)
    running = EngineLoop(model, slots=SLOTS)
    whole, _, _ = finish(running, command(WARM))
    tokens = tuple(token for one in whole for token in one.token_ids)
    for can_draft in (False, True):
        monkeypatch.setattr(model, "_can_draft", can_draft)
        rest, _, accepted = finish(running, command(WARM, delivered=tokens[:15]))
        assert tokens[15:] == tuple(token for one in rest for token in one.token_ids)
        assert (accepted > 0) is can_draft


@pytest.mark.nightly("long")
@pytest.mark.usefixtures("eager")
def test_eight_answers_and_the_last_of_them_are_those_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [8, 10, 12, 14, 16, 18, 20, 60]
    asked = [command(msgspec.structs.replace(WARM, seed=number, max_tokens=most), id=number) for number, most in enumerate(lengths)]
    with opened(model_discovery.packaged(), slots=8) as model:
        running = EngineLoop(model, slots=8)
        found, _, accepted = finish(running, *asked)
        assert accepted > 0, "the last one runs alone in the end"
        monkeypatch.setattr(model, "_can_draft", False)
        for one in asked:
            alone = [token for each in finish(running, one)[0] for token in each.token_ids]
            assert alone == [token for each in found if each.id == one.id for token in each.token_ids]


# --- which models -------------------------------------------------------------------------------------------------------------------

SHAPE = LlamaShape(layers=2, embedding=64, heads=2, kv_heads=1, feed_forward=64, vocabulary=300, context=CONTEXT)
RECURRENT = LlamaShape(layers=2, embedding=64, heads=2, kv_heads=1, feed_forward=64, vocabulary=300, context=CONTEXT, hybrid=True)
WINDOW = LlamaShape(layers=2, embedding=64, heads=2, kv_heads=1, feed_forward=64, vocabulary=300, context=CONTEXT, window=32)


@pytest.mark.parametrize(
    ("shape", "weights", "changes", "on_gpu", "expected"),
    [
        pytest.param(SHAPE, "q8_0", {}, False, (True, False), id="exact, without adapters: theirs have other types"),
        pytest.param(SHAPE, "q8_0", {"speculates": False}, False, (False, False), id="off"),
        pytest.param(SHAPE, "f16", {}, False, (False, False), id="a single row of F16 has other bits"),
        pytest.param(SHAPE, "f16", {"kv_mode": KvMode.SHARED}, False, (True, True), id="shared promises none"),
        pytest.param(SHAPE, "q8_0", {"kv_type": KvTypes(KvType.F16, KvType.F16)}, False, (False, False), id="attention in parts"),
        pytest.param(SHAPE, "q8_0", {"kv_type": KvTypes(KvType.Q8_0)}, False, (True, False), id="quantized keys and values"),
        pytest.param(RECURRENT, "q8_0", {"kv_mode": KvMode.SHARED}, False, (False, False), id="a state can't be cut"),
        pytest.param(WINDOW, "q8_0", {}, False, (True, False), id="a processor keeps what is before a window"),
        pytest.param(WINDOW, "q8_0", {}, True, (False, False), id="a GPU doesn't"),
        pytest.param(SHAPE, "f16", {}, True, (True, True), id="a GPU promises none"),
    ],
)
def test_drafts_only_where_tokens_stay_the_same(
    *,
    shape: LlamaShape,
    weights: gguf_files.Weights,
    changes: dict[str, object],
    on_gpu: bool,
    expected: tuple[bool, bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gguf_files.write_llama(tmp_path / "a.gguf", shape, weights=weights, seed=1)
    if on_gpu:
        # As on a GPU, but computed on the CPU.
        monkeypatch.setattr(model_loading, "on_gpu", lambda _: True)
    with opened(tmp_path / "a.gguf", **changes) as model:
        assert (model.can_draft(0), model.can_draft(1)) == expected


def test_types_of_all_parts_of_a_model_count(tmp_path: Path) -> None:
    types = {"blk.0.ffn_up.weight": "q8_0", "blk.1.ffn_up.weight": "f16"}
    for number, (name, stored) in enumerate(types.items()):
        pairs = {"general.architecture": gguf_files.text("llama"), "split.no": gguf_files.single("u16", number)}
        pairs |= {"split.count": gguf_files.single("u16", 2)}
        tensors = [gguf_files.Tensor(name, (64, 64), stored), gguf_files.Tensor(f"{name}.norm", (64,), "f32")]
        (tmp_path / f"m-{number + 1:05}-of-00002.gguf").write_bytes(gguf_files.joined(gguf_files.file(pairs, tensors)))
    assert gguf_header.check_parts(tmp_path / "m-00001-of-00002.gguf").matrix_types == {"q8_0", "f16"}


@pytest.mark.usefixtures("eager")
def test_memory_plan_has_room_for_the_rows_of_a_large_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = LlamaShape(layers=1, embedding=64, heads=2, kv_heads=1, feed_forward=64, vocabulary=256_000, context=CONTEXT)
    file = tmp_path / "large.gguf"
    gguf_files.write_llama(file, large, weights="q8_0", seed=1)
    lines: list[str] = []
    record = NativeLog.record

    def kept(log: NativeLog, level: int, text: bytes, user: object) -> None:
        lines.append(text.decode())
        record(log, level, text, user)

    monkeypatch.setattr(NativeLog, "record", kept)
    with opened(file) as model:
        computed = max(float(line.split("=")[1].split()[0]) for line in lines if "compute buffer size =" in line)
        running = EngineLoop(model, slots=SLOTS)
        copied = StartGeneration(1, PreparedPrompt("abcdefgh" * 20), GREEDY, "s")
        drafted, count, _ = finish(running, copied)
        monkeypatch.setattr(model, "_can_draft", False)
        assert [one.token_ids for one in drafted] == [one.token_ids for one in finish(running, copied)[0]]
        assert count >= lookup.MAX_DRAFTED
    header = gguf_header.check_parts(file)
    rows = lookup.most_outputs(SLOTS) * large.vocabulary * 4 / 2**20
    assert computed > rows
    for on_gpu in (False, True):
        # The output grows with the first draft.
        assert memory.compute_bytes(header, on_gpu=on_gpu, slots=SLOTS, context_tokens=CONTEXT, has_flash=True) / 2**20 > computed + rows
