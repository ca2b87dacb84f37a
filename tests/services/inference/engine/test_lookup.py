"""Guesses from the text before, and which of them are worth computing. Times are in plain steps of a machine of two cores."""

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import pytest

from services.inference.engine import lookup
from services.inference.engine.lookup import INDEXED_AT_ONCE, MAX_DRAFTED, PLAIN_EVERY, PromptLookup, Speculation

END = 2


def measured_cost(drafted: int) -> float:
    """As measured: 2 rows cost 2.05 steps, 4 rows 2.5, 8 rows 3.5 and 16 rows 5.6."""
    return 1.8 + 0.253 * drafted if drafted else 1.0


class Decoder:
    """Decodes known answers, step by step."""

    def __init__(self, cost: Callable[[int], float] = measured_cost) -> None:
        self.speculation = Speculation(lambda token: token == END)
        self._cost = cost
        #: Of the present step.
        self.draft: tuple[int, ...] = ()
        #: The drafted tokens of each step, and how many were right.
        self.drafts: list[tuple[int, int]] = []

    def decode(self, prompt: Sequence[int], answer: Iterable[int], count: int) -> float:
        """Return how many times as fast it was. ``answer`` may depend on what was drafted."""
        tokens, told, spent = list(prompt), iter(answer), 0.0
        one, done = PromptLookup(tokens, self.speculation), 0
        while done < count:
            draft, accepted = one.plan(count - done - 1), 0
            self.draft = draft
            while True:
                token = next(told)
                one.record(token)
                tokens.append(token)
                done += 1
                if accepted == len(draft) or token != draft[accepted]:
                    break
                accepted += 1
            seconds = self._cost(len(draft))
            spent += seconds
            self.drafts.append((len(draft), accepted))
            one.record_step(seconds, len(draft), accepted)
        return count / spent


def random_text(count: int, seed: int = 1) -> list[int]:
    return [random.Random(f"{seed} {at}").randrange(1000, 50_000) for at in range(count)]


def guesses(prompt: Sequence[int], limit: int = MAX_DRAFTED) -> tuple[int, ...]:
    """Return all guesses behind a prompt, as if drafts cost nothing."""
    free = Decoder(lambda _: 1.0).speculation
    for _ in range(200):
        free.chances.record(3, is_hit=True)
        free.chances.record(30, is_hit=True)
        free.costs.record(MAX_DRAFTED, 1.0)
    one = PromptLookup(list(prompt), free)
    one.record_step(1.0, 0, 0)
    return one.plan(limit)


def test_guesses_follow_the_longest_match() -> None:
    shared = [11, 12, 13, 14, 15]
    prompt = [9, *shared, 21, 22, 23, 8, 7, *shared[1:], 31, 32, 33, 6, 5, *shared]
    assert guesses(prompt)[:3] == (21, 22, 23), "five equal tokens, though four are nearer"


def test_only_eight_places_are_compared() -> None:
    shared, near = [10, 11, 12, 13], [11, 12, 13]
    assert guesses([*shared, 50, *[each for at in range(7) for each in (100 + at, *near)], 200, *shared])[:1] == (50,)
    assert guesses([*shared, 50, *[each for at in range(8) for each in (100 + at, *near)], 200, *shared])[:1] != (50,)


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param([1], id="one token"),
        pytest.param([7, 8], id="two tokens"),
        pytest.param([7, 8, 9, 7, 8], id="two equal tokens"),
        pytest.param(random_text(500), id="nothing comes twice"),
    ],
)
def test_without_three_equal_tokens_there_is_no_guess(prompt: list[int]) -> None:
    assert guesses(prompt) == ()


def test_end_tokens_and_rows_of_images_are_never_guessed() -> None:
    copied = [11, 12, 13, 14, 15]
    assert guesses([*copied, END, 16, *copied[:3]]) == (14, 15)
    assert guesses([*copied, -7, -8, *copied[:3]]) == (14, 15)
    assert guesses([11, 12, 13, END, 16, 11, 12, 13]) == ()


@pytest.mark.parametrize("limit", [-3, 0, 1, 5, 16, 40])
def test_limit_bounds_the_guesses(limit: int) -> None:
    text = random_text(100)
    assert guesses([*text, *text[:10]], limit) == tuple(text[10 : 10 + max(0, min(limit, MAX_DRAFTED))])


def test_repeated_end_of_the_text_is_guessed_further() -> None:
    assert guesses([5, *[7, 8, 9] * 2]) == tuple(islice([7, 8, 9] * 6, MAX_DRAFTED))


def test_first_step_has_no_draft_since_nothing_is_known_of_times() -> None:
    one = PromptLookup([7] * 20, Speculation(lambda _: False))
    assert one.plan(16) == ()


def test_a_copy_is_over_twice_as_fast() -> None:
    text, decoder = random_text(1000), Decoder()
    assert decoder.decode(text, text, 160) > 2.3
    assert decoder.decode(random_text(50, seed=2) + text, text, 160) > decoder.decode(text, random_text(200, seed=3), 160) > 0.99


def test_free_text_is_never_drafted() -> None:
    source, decoder = random.Random(1), Decoder()
    # Few words, so that three tokens often come again, but what follows is by chance.
    text = [source.randrange(100, 108) for _ in range(6000)]
    assert decoder.decode(text[:3000], text[3000:], 2000) > 0.97
    assert sum(drafted > 0 for drafted, _ in decoder.drafts[500:]) < 20


def test_guesses_that_are_not_drafted_are_learned_from() -> None:
    text, decoder = random_text(100), Decoder()
    decoder.decode(text, text, 60)
    first = next(at for at, (drafted, _) in enumerate(decoder.drafts) if drafted)
    # Two tokens without a match of three, then guesses that turn out right.
    assert 3 < first < 12
    assert all(drafted == accepted for drafted, accepted in decoder.drafts)


def always_wrong(prompt: list[int]) -> Iterable[int]:
    """Say three tokens of the prompt, then another one than comes there."""
    for at in range(0, len(prompt) - 4, 4):
        yield from (*prompt[at : at + 3], prompt[at + 3] + 1)


def test_prompt_that_is_guessed_wrongly_each_time_costs_little() -> None:
    prompt = random_text(8000)
    for seed in range(3):
        assert Decoder().decode(prompt, always_wrong(prompt), 400 + seed) >= 0.97


def test_text_that_defeats_what_was_learned_costs_little() -> None:
    """It copies until the engine drafts, and then says something else."""
    prompt, decoder = random_text(60_000), Decoder()

    def hostile() -> Iterable[int]:
        for token in prompt:
            yield token + bool(decoder.draft)

    for _ in range(4):
        assert 0.97 <= decoder.decode(prompt, hostile(), 400) <= 1
    assert sum(drafted > 0 for drafted, _ in decoder.drafts) > 10


class CountingList(list[int]):
    """Counts how many of its items are read."""

    read = 0

    def __getitem__(self, at: int | slice) -> int | list[int]:  # type: ignore[override]
        found = super().__getitem__(at)  # type: ignore[index]
        self.read += len(found) if isinstance(found, list) else 1
        return found


@pytest.mark.parametrize("prompt", [[7] * 100_000, random_text(100_000), [7, 8, 9, 10] * 25_000])
def test_one_step_reads_a_bounded_part_of_a_long_prompt(prompt: list[int]) -> None:
    tokens = CountingList(prompt)
    one = PromptLookup(tokens, Speculation(lambda _: False))
    most, steps = 0, 60
    for _ in range(steps):
        tokens.read = 0
        draft = one.plan(16)
        one.record(prompt[5])
        most = max(most, tokens.read)
        tokens.append(prompt[5])
        one.record_step(measured_cost(len(draft)), len(draft), 0)
    assert most <= 3 * INDEXED_AT_ONCE + 8 * 64 + 100


def test_every_so_often_a_step_is_plain() -> None:
    text, decoder = random_text(9000), Decoder()
    decoder.decode(text, text, 8000)
    drafted = [count > 0 for count, _ in decoder.drafts]
    assert all(not all(drafted[at : at + PLAIN_EVERY + 1]) for at in range(len(drafted) - PLAIN_EVERY))
    assert sum(drafted) > 0.9 * len(drafted)


def test_one_slow_step_does_not_end_drafts() -> None:
    steps, text = iter(range(10**6)), random_text(900)
    decoder = Decoder(lambda drafted: 200.0 if next(steps) == 12 else measured_cost(drafted))
    decoder.decode(text, text, 400)
    assert decoder.drafts[12][0] > 0, "the slow step has a draft"
    assert sum(drafted > 0 for drafted, _ in decoder.drafts[13:]) > 0.8 * len(decoder.drafts[13:])


def test_machine_that_was_busy_for_a_while_drafts_again() -> None:
    busy, text = True, random_text(9000)
    decoder = Decoder(lambda drafted: 40.0 * measured_cost(drafted) if busy and drafted else measured_cost(drafted))
    decoder.decode(text, text, 400)
    busy = False
    decoder.drafts.clear()
    decoder.decode(text, text, 2000)
    assert decoder.drafts[-2][0] == MAX_DRAFTED


def test_length_of_drafts_follows_their_cost() -> None:
    text = random_text(2000)
    for cost, expected in ((lambda _: 1.0, MAX_DRAFTED), (lambda drafted: 1.0 + 2.5 * drafted, 0)):
        decoder = Decoder(cost)
        for _ in range(4):
            decoder.decode(text, text, 500)
        last = [drafted for drafted, _ in decoder.drafts[-40:-1]]
        assert sorted(last)[len(last) // 2] == expected


def test_cost_is_a_line_of_what_was_measured() -> None:
    costs = Speculation(lambda _: False).costs
    assert [costs.of(drafted) for drafted in (1, 3, 7, 15)] == pytest.approx([2.05, 2.5, 3.5, 5.6], rel=0.03)
    for _ in range(100):
        costs.record(4, 1.2)
        costs.record(12, 1.6)
    assert (costs.of(4), costs.of(12)) == pytest.approx((1.2, 1.6), abs=0.02)


def test_step_draws_at_least_the_tokens_of_a_draft() -> None:
    assert (lookup.most_outputs(4), lookup.most_outputs(32)) == (17, 32)
