"""Tiny random vision models, and images for them."""

import io
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from services.inference import missing_libraries
from services.inference.engine import sampling
from services.inference.engine.engine_loop import EngineLoop
from services.inference.engine.engine_messages import AnswerProgress, KvMode, LoadCommand, PreparedPrompt, StartGeneration
from services.inference.engine.sequence import ImagePrompt
from services.inference.engine.special_tokens import IMAGE_MARK
from services.inference.images.prompt_images import DecodedImage
from tests import gguf_files
from tests.gguf_files import LlamaShape, ProjectorShape

SLOTS, CONTEXT, WIDTH = 8, 512, 64
#: LLaVA's projector, a projector whose image rows attend to each other, and a projector whose positions have several coordinates; then
#: models with a sliding window and with recurrent states.
KINDS = ("mlp", "gemma3", "qwen2vl_merger", "window", "hybrid")
GREEDY = sampling.Parameters(0, 1, 0, 1, max_tokens=12, ignore_eos=True)

needs_library = pytest.mark.skipif(
    not missing_libraries.IMAGES.exists(), reason="libaimesh_images was not built: python -m tools.engine_libraries"
)


@dataclass(frozen=True, slots=True)
class _Model:
    projector: Literal["mlp", "gemma3", "qwen2vl_merger"]
    sections: tuple[int, ...] = ()
    window: int = 0
    hybrid: bool = False


_MODELS = {
    "mlp": _Model("mlp"),
    "gemma3": _Model("gemma3"),
    "qwen2vl_merger": _Model("qwen2vl_merger", (2, 3, 3, 0)),
    "window": _Model("gemma3", window=32),
    "hybrid": _Model("mlp", hybrid=True),
}


def write(folder: Path, kind: str, *, width: int = WIDTH) -> LoadCommand:
    """Write a model, and a projector for models of width ``width``."""
    own = _MODELS[kind]
    shape = LlamaShape(
        layers=2, embedding=WIDTH, heads=4, kv_heads=2, feed_forward=96, vocabulary=300, context=2048,
        sections=own.sections, window=own.window, hybrid=own.hybrid,
    )  # fmt: skip
    gguf_files.write_llama(folder / "model.gguf", shape, weights="q8_0", seed=1)
    gguf_files.write_projector(folder / "mmproj-model.gguf", ProjectorShape(kind=own.projector, width=width), seed=2)
    return LoadCommand(str(folder / "model.gguf"), SLOTS, CONTEXT, 1, 0, KvMode.SHARED, projector=str(folder / "mmproj-model.gguf"))


def picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """Return an image of four random colors, one in each quarter."""
    rng = random.Random(seed)
    image = Image.new("RGB", (2, 2))
    image.putdata([(rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(4)])
    return image.resize((width, height), Image.Resampling.NEAREST)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def decoded(image: Image.Image) -> DecodedImage:
    return DecodedImage(*image.size, image.tobytes())


class Asked:
    """Sends a loop one prompt at a time."""

    def __init__(self, loop: EngineLoop) -> None:
        self.loop = loop
        self._identity = 0

    def begin(self, text: str, *images: Image.Image, salt: str = "", delivered: tuple[int, ...] = ()) -> ImagePrompt:
        """Begin a request; ``#`` in the text stands for an image."""
        self._identity += 1
        command = StartGeneration(self._identity, PreparedPrompt(text.replace("#", IMAGE_MARK)), GREEDY, salt, delivered)
        listed = [decoded(image) for image in images]
        prompt = self.loop.read_images(command, listed, lambda: True) if listed else self.loop.tokenize(command)
        self.loop.begin(command, prompt)
        return prompt

    def finish(self) -> list[AnswerProgress]:
        answered: list[AnswerProgress] = []
        while not self.loop.idle:
            step = self.loop.step()
            answered += step.progress if step is not None else ()
        return answered

    def ask(self, text: str, *images: Image.Image, salt: str = "", delivered: tuple[int, ...] = ()) -> tuple[list[int], int]:
        """Return the answer's tokens, and how many tokens of the prompt were cached."""
        self.begin(text, *images, salt=salt, delivered=delivered)
        answered = self.finish()
        return [token for one in answered for token in one.token_ids], max(one.cached_tokens for one in answered)
