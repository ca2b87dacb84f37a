"""llama.cpp's samplers on made-up logits, drawn by one thread and by several."""

import itertools
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
#: Drawn by an earlier implementation, with shared chains that included `dist`.
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


@settings(max_examples=300)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([70, 640, 2000, 5001]),
    top_k=st.sampled_from([1, 2, 5, 31, 40]),
    biases=st.dictionaries(st.integers(0, 69), st.sampled_from([-100.0, -3.0, 0.5, 4.0, 100.0]), max_size=4),
    temperature=st.sampled_from([0.0, 0.5, 2.0]),
    ignore_eos=st.booleans(),
    allowed=st.one_of(st.none(), st.sets(st.integers(0, 69), min_size=1, max_size=50)),
)
def test_a_token_is_drawn_from_the_likeliest_as_from_all(
    *, seed: int, size: int, top_k: int, biases: dict[int, float], temperature: float, allowed: set[int] | None, ignore_eos: bool
) -> None:
    vocabulary = cast("ModelVocabulary", SimpleNamespace(size=size, end_tokens=frozenset({0, 3})))
    logits = np.random.default_rng(seed).normal(0, 3, (1, size)).astype(np.float32)
    if allowed is not None:
        # Mask them like a grammar.
        logits[0, [token for token in range(size) if token not in allowed]] = -np.inf
    parameters = Parameters(temperature, 0.95, top_k, seed, min_p=0.01, logit_bias=tuple(biases.items()), ignore_eos=ignore_eos)
    sampler, drawn = StepSampler(size, 1), list[int]()
    for wants_all in (False, True):
        sequence = TokenSampler(vocabulary, parameters)
        assert sequence.wanted is not None
        if wants_all:
            sequence.wanted = None
        drawn += [sampler.draw([sequence], logits, [position])[0].token for position in range(3)]
        sequence.free()
    sampler.free()
    assert drawn[:3] == drawn[3:]


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_are_drawn_together_as_alone(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_sampler, "PARALLEL_LOGITS", 0)
    size, rows = 8_200, 12
    vocabulary = cast("ModelVocabulary", SimpleNamespace(size=size, end_tokens=frozenset({0}), piece=VOCABULARY.piece))
    logits = np.random.default_rng(2).normal(0, 3, (rows, size)).astype(np.float32)
    logits[3] = np.nan
    together, alone = StepSampler(size, threads), StepSampler(size, 1)
    sequences = [[TokenSampler(vocabulary, KINDS[row % len(KINDS)]) for row in range(rows)] for _ in range(2)]
    assert {sequence.wanted is None for sequence in sequences[0]} == {True, False}
    drawn = together.draw(sequences[0], logits, [*range(rows)])
    for row, sequence in enumerate(sequences[1]):
        sequence.wanted = None
        if row != 3:
            assert alone.draw([sequence], logits[[row]], [row]) == [drawn[row]]
    for sequence in itertools.chain(*sequences):
        sequence.free()
    together.free()
    alone.free()


def test_logits_that_cannot_be_compared_end_nothing() -> None:
    sampler, sequence = StepSampler(SIZE, 1), TokenSampler(VOCABULARY, KINDS[0])
    assert 0 <= sampler.draw([sequence], np.full((1, SIZE), np.nan, np.float32), [0])[0].token < SIZE
    sequence.free()
    sampler.free()


def test_error_in_a_thread_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_sampler, "PARALLEL_LOGITS", 0)
    sampler = StepSampler(SIZE, 2)
    sequences = [TokenSampler(VOCABULARY, KINDS[1]) for _ in range(4)]
    with pytest.raises(IndexError, match="range"):
        sampler.draw(sequences, np.zeros((4, SIZE), np.float32), [0, 1, 2])
    sampler.free()
