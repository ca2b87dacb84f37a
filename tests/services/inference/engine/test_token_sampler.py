"""llama.cpp's samplers on made-up logits, drawn by one thread and by several."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from services.inference.engine import token_sampler
from services.inference.engine.sampling import Parameters
from services.inference.engine.sequence import DrawnToken
from services.inference.engine.token_sampler import StepSampler, TokenSampler
from services.inference.engine.vocabulary import ModelVocabulary

SIZE = 2000
VOCABULARY = cast("ModelVocabulary", SimpleNamespace(size=SIZE, end_tokens=frozenset({0}), piece=lambda token, _: str(token).encode()))
KINDS = [
    Parameters(0.7, 0.95, 40, 3),
    Parameters(1.5, 1.0, 0, 7, repeat_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.5, min_p=0.01, max_tokens=8),
    Parameters(0, 1, 0, 1),
    Parameters(1.0, 1.0, 0, 5, logit_bias=((100, 6.0),), ignore_eos=True),
    Parameters(0.9, 0.5, 0, 6, top_logprobs=2),
]
#: Drawn when chains were shared and `dist` was a part of them.
GOLDEN = [[860, 1053, 912, 59, 977], [530, 986, 322, 728, 603], [432, 242, 930, 693, 585], [266, 1886, 1334, 444, 46]]


def draw(threads: int, steps: int, rows: int) -> list[list[DrawnToken]]:
    """Return the tokens of each step."""
    sampler = StepSampler(SIZE, threads)
    sequences = [TokenSampler(VOCABULARY, KINDS[row % len(KINDS)]) for row in range(rows)]
    logits = np.random.default_rng(1).normal(0, 3, (steps, rows, SIZE)).astype(np.float32)
    drawn = [sampler.draw(sequences, logits[step], [step + row for row in range(rows)]) for step in range(steps)]
    for sequence in sequences:
        sequence.free()
    sampler.free()
    return drawn


def test_same_seeds_draw_the_tokens_of_earlier_releases() -> None:
    tokens = [[one.token for one in step] for step in draw(1, 4, len(KINDS))]
    assert tokens == GOLDEN


@pytest.mark.parametrize("threads", [2, 8])
def test_threads_draw_the_same_tokens_as_one(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = draw(1, 6, 25)
    monkeypatch.setattr(token_sampler, "PARALLEL_LOGITS", 0)
    assert draw(threads, 6, 25) == alone


def test_error_in_a_thread_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_sampler, "PARALLEL_LOGITS", 0)
    sampler = StepSampler(SIZE, 2)
    sequences = [TokenSampler(VOCABULARY, KINDS[0]) for _ in range(4)]
    with pytest.raises(IndexError, match="range"):
        sampler.draw(sequences, np.zeros((4, SIZE), np.float32), [0, 1, 2])
    sampler.free()
