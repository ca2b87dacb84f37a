"""A tiny model with a projector in its real processes: from encoded images to answers."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from services.inference.backends import llama
from services.inference.backends.llama import LlamaBackend
from services.inference.engine import engine_messages
from services.inference.engine.engine_messages import KvMode
from services.inference.jobs import GenerationJob
from services.inference.models import memory, model_discovery
from services.inference.models.catalog import Catalog, CatalogEntry
from shared import errors
from shared.api.generation import ChatMessage, ImageDetail, ImagePart
from shared.api.inference import ModelState, Tokenize
from shared.types import Ability, FinishReason, ModelName
from tests import tiers
from tests.services.inference.images import vision_models
from tests.services.inference.images.test_image_decoding import BAD, MUTATED
from tests.services.inference.images.vision_models import encoded, picture
from tests.services.inference.standins import Reader, Watch, engine_pid, job, until

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    vision_models.needs_library,
]

NAME = ModelName("sees")
OPTIONS = engine_messages.LoadCommand(path="", slots=4, context_tokens=512, threads=1, gpu_layers=0, kv_mode=KvMode.EXACT)
ROOM = memory.MemoryBudget(2**30, "a test")


class ImageWatch(Watch):
    def __init__(self) -> None:
        super().__init__()
        self.image_seconds = 0.0

    def memory_found(self, free_bytes: int) -> None:
        pass

    def images_encoded(self, model: ModelName, seconds: float) -> None:
        assert model == NAME
        self.image_seconds += seconds


WATCH = ImageWatch()


def seeing(folder: Path, kind: str = "qwen2vl_merger", **fields: object) -> CatalogEntry:
    load = vision_models.write(folder, kind)
    return CatalogEntry(name=NAME, file=Path(load.path), slots=4, context_tokens=512, projector=Path(load.projector), **fields)  # type: ignore[arg-type]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LlamaBackend]:
    entry = seeing(tmp_path_factory.mktemp("model"), preload=True)
    async with llama.opened(Catalog((entry,)), OPTIONS, 8, ROOM, WATCH) as opened:
        await until(lambda: opened.models()[0].state is ModelState.READY)
        yield opened


def look(*data: bytes, text: str = "What is this?", detail: ImageDetail = ImageDetail.AUTO, salt: str = "") -> GenerationJob:
    message = ChatMessage("user", text, images=tuple(ImagePart(one, 5, detail) for one in data))
    return replace(job("x", model=NAME, temperature=0, max_tokens=8, ignore_eos=True), messages=(message,), salt=salt)


async def test_an_image_is_looked_at(backend: LlamaBackend) -> None:
    (status,) = backend.models()
    assert Ability.IMAGES in status.abilities
    answers = {}
    before = WATCH.image_seconds
    for name, data in (("png", encoded(picture(1))), ("webp", encoded(picture(1), "WEBP", lossless=True)), ("other", encoded(picture(2)))):
        reader = Reader()
        end = await backend.generate(look(data), reader)
        assert end.finish_reason is FinishReason.LENGTH
        answers[name] = (reader.token_ids, end.usage.prompt_tokens)
    assert answers["png"] == answers["webp"]
    assert answers["png"][0] != answers["other"][0]
    without = await backend.generate(look(), Reader())
    # 9 patches of 16 x 16 pixels, between the two markers.
    assert answers["png"][1] == without.usage.prompt_tokens + 9 + len("<|vision_start|><|vision_end|>")
    assert WATCH.image_seconds > before


async def test_projector_is_a_part_of_the_digest(backend: LlamaBackend, tmp_path: Path) -> None:
    await until(lambda: backend.models()[0].digest != "")
    assert backend.models()[0].digest != hashlib.sha256(seeing(tmp_path).file.read_bytes()).hexdigest()


async def test_detail_low_takes_fewer_tokens(backend: LlamaBackend) -> None:
    data = encoded(picture(1, 1400, 200))
    # The whole image exceeds the context.
    with pytest.raises(errors.ContextExceeded, match="maximum context length is 512"):
        await backend.generate(look(data), Reader())
    low = await backend.generate(look(data, detail=ImageDetail.LOW), Reader())
    without = await backend.generate(look(), Reader())
    # 512 x 73 pixels, in patches of 16 x 16.
    assert low.usage.prompt_tokens - without.usage.prompt_tokens - len("<|vision_start|><|vision_end|>") in range(32 * 4, 32 * 6)


async def test_a_further_turn_reads_only_its_own_tokens(backend: LlamaBackend) -> None:
    first = look(encoded(picture(5)), encoded(picture(6)), salt="a")
    reader = Reader()
    await backend.generate(first, reader)
    turns = (*first.messages, ChatMessage("assistant", reader.text), ChatMessage("user", "And now?"))
    end = await backend.generate(replace(first, messages=turns), Reader())
    assert end.usage.cached_tokens > 80
    other = look(encoded(picture(5)), encoded(picture(7)), salt="a")
    again = await backend.generate(other, Reader())
    assert again.usage.cached_tokens < 80


def niceness_of_threads(pid: int | None) -> set[int]:
    # Field 19 of /proc/PID/stat; the name in parentheses is field 2.
    return {int(stat.read_text().rpartition(")")[2].split()[16]) for stat in Path(f"/proc/{pid}/task").glob("*/stat")}


async def test_answers_come_before_images_on_the_processor(backend: LlamaBackend) -> None:
    await backend.generate(look(encoded(picture(1))), Reader())
    found = niceness_of_threads(engine_pid(backend, NAME))
    assert sorted(found) == [min(found), min(19, min(found) + 5)]


async def test_text_answers_continue_while_images_are_read(backend: LlamaBackend) -> None:
    jobs = [look(encoded(picture(number, 200, 160)), text=f"Look {number}") for number in range(10, 16)]
    texts = [look(text=f"Only text {number}") for number in range(6)]
    ends = await asyncio.gather(*(backend.generate(one, Reader()) for one in (*jobs, *texts)))
    assert {end.usage.completion_tokens for end in ends} == {8}


@pytest.mark.parametrize("name", BAD)
async def test_bad_image_is_refused_and_the_engine_lives(backend: LlamaBackend, name: str) -> None:
    data, reason = BAD[name]
    pid = engine_pid(backend, NAME)
    with pytest.raises(errors.BadRequest, match=f"image 2 .*{reason}"):
        await backend.generate(look(encoded(picture(1)), data()), Reader())
    assert (await backend.generate(look(encoded(picture(1))), Reader())).usage.completion_tokens == 8
    assert engine_pid(backend, NAME) == pid


async def test_ten_thousand_frames(backend: LlamaBackend) -> None:
    frame = encoded(picture(1, 16, 16), "GIF")
    header, rest = frame[: frame.index(b"\x2c")], frame[frame.index(b"\x2c") : -1]
    pid = engine_pid(backend, NAME)
    end = await backend.generate(look(header + rest * 10_000 + b";"), Reader())
    assert (end.usage.completion_tokens, engine_pid(backend, NAME)) == (8, pid)


async def test_mutated_images_never_reach_the_engine_undecoded(backend: LlamaBackend) -> None:
    rng, pid = random.Random(7), engine_pid(backend, NAME)
    files = [encoded(picture(1, 60, 50), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")]
    refused = 0
    for number in range(MUTATED if tiers.is_nightly() else MUTATED // 10):
        data = bytearray(files[number % len(files)])
        for _ in range(rng.randrange(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            await backend.generate(look(bytes(data)), Reader())
        except (errors.BadRequest, errors.ContextExceeded):
            refused += 1
    assert refused > 10
    assert engine_pid(backend, NAME) == pid


async def test_chat_process_that_dies_while_it_decodes_is_started_again(backend: LlamaBackend) -> None:
    """Decoding 40 million pixels with transparency needs more memory than the process may use."""
    data = encoded(picture(1, 8000, 5000).convert("RGBA"))
    pid = engine_pid(backend, NAME)
    with pytest.raises(errors.BadRequest, match=r"image 1 (needs too much memory|crashes its decoder, or needs more than 2 s or 512 MiB)"):
        await backend.generate(look(data), Reader())
    assert (await backend.generate(look(encoded(picture(1))), Reader())).usage.completion_tokens == 8
    assert engine_pid(backend, NAME) == pid


async def test_images_are_not_for_conversions(backend: LlamaBackend) -> None:
    with pytest.raises(errors.BadRequest, match="the tokens of images"):
        await backend.convert(Tokenize(NAME, look(encoded(picture(1))).messages))


async def test_named_projector_that_does_not_fit_fails_its_entry(tmp_path: Path) -> None:
    entry = seeing(tmp_path, "mlp", preload=True)
    vision_models.write(tmp_path, "mlp", width=32)
    async with llama.opened(Catalog((entry,)), OPTIONS, 4, ROOM, Watch()) as opened:
        await until(lambda: opened.models()[0].state is ModelState.FAILED)
        assert "mismatch between text model (n_embd = 64) and mmproj (n_embd = 32)" in opened.models()[0].detail


async def test_lone_projector_beside_the_model_is_found_and_left_out_if_it_does_not_fit(tmp_path: Path) -> None:
    vision_models.write(tmp_path, "mlp")
    (entry,) = model_discovery.find({NAME: str(tmp_path / "model.gguf")}).entries
    assert (entry.projector, entry.projector_is_optional) == (tmp_path / "mmproj-model.gguf", True)
    vision_models.write(tmp_path, "mlp", width=32)
    async with llama.opened(Catalog((entry,)), OPTIONS, 4, ROOM, Watch()) as opened:
        await until(lambda: opened.models()[0].state is ModelState.READY)
        assert Ability.IMAGES not in opened.models()[0].abilities
        await until(lambda: opened.models()[0].digest != "")
        assert opened.models()[0].digest == hashlib.sha256(entry.file.read_bytes()).hexdigest()
        assert (await opened.generate(look(), Reader())).usage.completion_tokens == 8
        with pytest.raises(errors.BadRequest, match="this model doesn't support images"):
            await opened.generate(look(encoded(picture(1))), Reader())
    (tmp_path / "mmproj-other.gguf").touch()
    (entry,) = model_discovery.find({NAME: str(tmp_path / "model.gguf")}).entries
    assert entry.projector is None
