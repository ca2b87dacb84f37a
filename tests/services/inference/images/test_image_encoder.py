"""Tiny random models with projectors, in this process: what is shared, and that sharing changes no token."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from services.inference.engine import llama_model, model_loading, prompt_cache
from services.inference.engine.engine_loop import EngineLoop
from services.inference.engine.engine_messages import KvMode
from services.inference.engine.kv_slots import KvLayout
from services.inference.engine.llama_model import LlamaModel
from services.inference.engine.model_loading import NativeLog
from services.inference.images import image_encoder
from services.inference.models import memory
from shared import errors
from tests import tiers
from tests.services.inference.images import vision_models
from tests.services.inference.images.vision_models import GREEDY, KINDS, SLOTS, Asked, picture

pytestmark = vision_models.needs_library

ONE, TWO = picture(1), picture(2, 90, 30)
QUESTION = "Two pictures # and # are here, with a text behind them that is long enough. Which?"


PAIRS = [(kind, mode) for kind in KINDS for mode in KvMode]
#: Every kind once, with alternating modes.
BY_DAY = zip(KINDS, itertools.cycle(KvMode))


@pytest.fixture(scope="module", params=tiers.by_day(PAIRS, *BY_DAY, group="long"), ids=str)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    kind, mode = request.param
    load = msgspec.structs.replace(vision_models.write(tmp_path_factory.mktemp("model"), kind), kv_mode=mode)
    with llama_model.opened(load, lambda _: None) as opened:
        yield opened


def fresh(model: LlamaModel, cache_bytes: int = 0) -> Asked:
    for slot in range(SLOTS):
        model.clear(slot)
    return Asked(EngineLoop(model, slots=SLOTS, cache_bytes=cache_bytes))


def test_tokens_are_the_same_with_a_cached_prefix(model: LlamaModel) -> None:
    alone = {text: fresh(model).ask(text, ONE, TWO)[0] for text in (QUESTION, QUESTION + " Say it.", "# #?")}
    asked = fresh(model)
    cached = []
    for text in (QUESTION, QUESTION + " Say it.", QUESTION, "# #?", "# #?"):
        tokens, count = asked.ask(text, ONE, TWO, salt="a")
        assert tokens == alone[text]
        cached.append(count)
    spans = asked.begin(QUESTION, ONE, TWO, salt="a").hashed.spans
    assert cached[0] == 0
    assert min(cached[1:3]) > spans[-1].end, "the images were read again"


def test_another_image_is_never_a_hit(model: LlamaModel) -> None:
    assert model._images is not None
    expected = fresh(model).ask(QUESTION, TWO, ONE)[0]
    asked = fresh(model)
    asked.ask(QUESTION, ONE, TWO, salt="a")
    tokens, cached = asked.ask(QUESTION, TWO, ONE, salt="a")
    first = asked.begin(QUESTION, TWO, ONE, salt="a").hashed.spans[0]
    assert (tokens, cached <= first.start) == (expected, True)
    asked.finish()
    # Part of an image is not shared either, even if the first rows are the same.
    halves = picture(1, 48, 40)
    halves.paste(picture(9, 48, 20), (0, 20))
    assert asked.ask("# and more of it", halves, salt="a")[0] == fresh(model).ask("# and more of it", halves)[0]


def test_an_image_is_encoded_once_for_a_tenant(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = model._images
    assert encoder is not None
    encoded: list[int] = []
    original = encoder._encoded
    monkeypatch.setattr(encoder, "_encoded", lambda chunk, number: encoded.append(number) or original(chunk, number))
    asked = fresh(model)
    three = picture(3)
    counts = []
    for salt, image in (("once", three), ("once", three), ("other", three), ("", three), ("", three), ("once", picture(4))):
        asked.ask("# what?", image, salt=salt)
        counts.append(len(encoded))
    assert counts == [1, 1, 2, 3, 4, 5]
    rows = encoder._cached_bytes
    monkeypatch.setattr(image_encoder, "MAX_CACHED_BYTES", rows)
    for number in range(5, 9):
        asked.ask("# what?", picture(number), salt="once")
        assert encoder._cached_bytes <= rows
        assert encoder._cached_bytes == sum(one.nbytes for rows_of in encoder._cached.values() for one in rows_of)


def test_images_count_as_prompt_tokens_and_a_prompt_that_is_too_long_is_refused_before_they_are_encoded(
    model: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fresh(model)
    prompt = asked.begin(QUESTION, ONE, TWO)
    assert sum(progress.finish is not None for progress in asked.finish()) == 1
    rows = sum(len(one.values) for one in prompt.rows.values() if isinstance(one, image_encoder.ImageRows))
    assert sum(span.end - span.start for span in prompt.hashed.spans) == rows > 0
    assert all(token < 0 for span in prompt.hashed.spans for token in prompt.hashed.tokens[span.start : span.end])
    monkeypatch.setattr(model._images, "_encoded", lambda *_: pytest.fail("encoded"))
    with pytest.raises(errors.ContextExceeded, match=f"maximum context length is {model.context_tokens}"):
        asked.begin(QUESTION + "x" * model.context_tokens, ONE, TWO)


def test_resumed_answer_is_the_same(model: LlamaModel) -> None:
    whole, _ = fresh(model).ask(QUESTION, ONE, TWO)
    asked = fresh(model)
    asked.ask(QUESTION, ONE, TWO, salt="a")
    for count in (1, 5, 11):
        assert asked.ask(QUESTION, ONE, TWO, salt="a", delivered=tuple(whole[:count]))[0] == whole[count:]


def test_answers_at_the_same_time_are_those_alone(model: LlamaModel) -> None:
    prompts = {1: ("# one?", (ONE,)), 2: (QUESTION, (TWO, ONE)), 3: ("Only text here.", ()), 4: ("Text, then # and the end", (TWO,))}
    alone = {number: fresh(model).ask(text, *pictures)[0] for number, (text, pictures) in prompts.items()}
    asked = fresh(model)
    for text, pictures in prompts.values():
        asked.begin(text, *pictures)
    together: dict[int, list[int]] = {}
    for progress in asked.finish():
        together.setdefault(progress.id, []).extend(progress.token_ids)
    assert {number: len(tokens) for number, tokens in together.items()} == dict.fromkeys(prompts, GREEDY.max_tokens)
    if model.layout is KvLayout.STREAMS:
        assert together == alone


def test_prompts_with_images_come_back_from_the_prompt_cache(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_cache, "WORTH_SAVING_TOKENS", 16)
    monkeypatch.setattr(prompt_cache, "COPY_SECONDS", 10.0)
    expected, _ = fresh(model).ask(QUESTION, ONE, TWO)
    asked = fresh(model, cache_bytes=2**26)
    asked.ask(QUESTION, ONE, TWO, salt="a")
    for number in range(2 * SLOTS):
        asked.ask(f"{number} is another text of another tenant, which needs a slot of its own", salt=f"b{number}")
    tokens, cached = asked.ask(QUESTION, ONE, TWO, salt="a")
    assert (tokens, cached > 40) == (expected, True)


@pytest.mark.parametrize(("kind", "side"), [("mlp", 32), ("gemma3", 32), ("qwen2vl_merger", 256)])
def test_buffers_of_the_largest_image_are_planned(kind: str, side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(NativeLog, "record", lambda _log, _level, text, _user: lines.append(text.decode()))
    monkeypatch.setattr(memory, "LONG_SIDE", side)
    load = vision_models.write(tmp_path, kind)
    with llama_model.opened(load, lambda _: None) as model:
        asked = Asked(EngineLoop(model, slots=SLOTS))
        asked.begin("#?", picture(1, 256, 256))
    (used,) = re.findall(r"reserve_compute_meta: .* compute buffer size = +([\d.]+) MiB", "".join(lines))
    planned = memory.projector_bytes(Path(load.projector)) - Path(load.projector).stat().st_size
    assert planned / 4 < float(used) * 2**20 <= planned


@pytest.mark.parametrize("kind", tiers.by_day(KINDS, "mlp", group="long"))
def test_projector_of_another_width(kind: str, tmp_path: Path) -> None:
    load = vision_models.write(tmp_path, kind, width=32)
    refused = pytest.raises(model_loading.LoadRefused, match=r"does not fit the model: .*mismatch between text model \(n_embd = 64\)")
    with refused, llama_model.opened(load, lambda _: None):
        pytest.fail("loaded")
    with llama_model.opened(msgspec.structs.replace(load, projector_is_optional=True), lambda _: None) as model:
        described = model.describe()
        assert (described.sees_images, "it sees no images" in described.lowered) == (False, True)
        asked = Asked(EngineLoop(model, slots=SLOTS))
        assert len(asked.ask("Only text.")[0]) == GREEDY.max_tokens
        with pytest.raises(errors.BadRequest, match="this model doesn't support images"):
            asked.begin("#?", ONE)


def test_model_as_projector(tmp_path: Path) -> None:
    load = vision_models.write(tmp_path, "mlp")
    load = msgspec.structs.replace(load, projector=load.path)
    with pytest.raises(model_loading.LoadRefused, match="is not a projector"), llama_model.opened(load, lambda _: None):
        pytest.fail("loaded")


def test_marks_and_images_must_match(model: LlamaModel) -> None:
    asked = fresh(model)
    for text, pictures in (("no mark", (ONE,)), ("# #", (ONE,))):
        with pytest.raises(errors.BadRequest, match="template does not show each image once"):
            asked.begin(text, *pictures)
    if asked.begin("what is this? # ", ONE).hashed.spans[-1].end == 14 + 16:
        # LLaVA has no marker after an image.
        with pytest.raises(errors.BadRequest, match="a text must follow the last image"):
            asked.begin("what is this? #", ONE)
