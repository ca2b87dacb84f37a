"""Drafts of answers: they change nothing but the number of steps. The toy model checks each batch."""

import itertools
from dataclasses import dataclass, replace

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.inference.engine import lookup, scheduler
from services.inference.engine.engine_loop import EngineLoop
from services.inference.engine.engine_messages import AnswerProgress, CancelGeneration, StepReport
from services.inference.engine.kv_slots import KvLayout
from services.inference.engine.prompt_cache import BLOCK
from services.inference.engine.scheduler import QUIET_EVERY
from shared.types import FinishReason
from tests import tiers
from tests.services.inference.engine.commands import handle
from tests.services.inference.engine.test_engine_loop import LAYOUTS, answer_text, begin_with_images, finish, generate, text
from tests.services.inference.engine.toy_model import ToyModel

PAGE = "Twas brillig, and the slithy toves did gyre and gimble in the wabe: "


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draft every guess, also those that turned out wrong."""
    for name, value in (("CHANCE", 1.0), ("WEIGHT", 1e9), ("COST", 0.0), ("COST_PER_TOKEN", 1e-9), ("LOSS", 1e9)):
        monkeypatch.setattr(lookup, f"_FIRST_{name}", value)


def loop(model: ToyModel, cache_bytes: int = 0) -> EngineLoop:
    """Every step takes as long."""
    ticks = itertools.count()
    return EngineLoop(model, slots=model.slots, cache_bytes=cache_bytes, clock=lambda: float(next(ticks)))


def plain(model: ToyModel) -> ToyModel:
    return ToyModel(model.layout, model.context_tokens, model.context_tokens * model.slots, drafts=False)


def drafting_model(layout: KvLayout = KvLayout.STREAMS, **changes: int) -> ToyModel:
    return replace(ToyModel(layout, context_tokens=400, pool_tokens=1600, step_tokens=64), **changes)  # type: ignore[arg-type]


def steps(running: EngineLoop, count: int) -> list[StepReport]:
    return [step for _ in range(count) if (step := running.step()) is not None]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copy_takes_few_steps(layout: KvLayout) -> None:
    model = drafting_model(layout)
    running = loop(model)
    handle(running, generate(1, PAGE * 2, max_tokens=len(PAGE) * 2))
    taken = 0
    said: list[AnswerProgress] = []
    while not running.idle:
        said += steps(running, 1)[0].progress
        taken += 1
    assert text(said) == PAGE * 2
    assert taken < 25
    assert sum(accepted for _, accepted in model.drafted) > 100


def test_each_token_has_its_own_report() -> None:
    """The worker ends an answer at a stop sequence, and must not count what comes behind it."""
    running = loop(drafting_model())
    handle(running, generate(1, PAGE * 2, top_logprobs=0))
    reports = finish(running)[1]
    assert {len(one.token_ids) for one in reports[:-1]} == {1}
    assert [one.logprobs[0].drawn.token_id for one in reports[:-1]] == [token for one in reports for token in one.token_ids]
    assert [one.logprobs[0].drawn.logprob for one in reports[:-1]] == [-float(len(PAGE * 2) + at) for at in range(len(PAGE * 2))]
    assert [one.finish for one in reports if one.finish] == [FinishReason.STOP]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_report_counts_drafted_and_accepted_tokens(layout: KvLayout) -> None:
    model = drafting_model(layout)
    running = loop(model)
    handle(running, generate(1, PAGE * 2, temperature=0.04, seed=3))
    reports = []
    while not running.idle:
        reports += steps(running, 1)
    assert [(one.drafted, one.accepted) for one in reports] == model.drafted
    drafted, accepted = (sum(each) for each in zip(*model.drafted, strict=True))
    assert 0 < accepted < drafted
    assert all(len(one.progress) == 1 + one.accepted for one in reports if one.drafted)


@pytest.mark.parametrize("most", range(1, 20))
def test_answers_end_at_their_limit(most: int) -> None:
    """The toy model refuses guesses beyond it."""
    model = drafting_model()
    running = loop(model)
    handle(running, generate(1, PAGE * 2, max_tokens=40 + most))
    reports = finish(running)[1]
    assert (text(reports), reports[-1].finish) == ((PAGE * 2)[: 40 + most], FinishReason.LENGTH)
    assert max(drafted for drafted, _ in model.drafted) == lookup.MAX_DRAFTED


def test_only_a_lone_answer_is_drafted() -> None:
    model = drafting_model()
    running = loop(model)
    handle(running, generate(1, PAGE * 2))
    for _ in range(12):
        running.step()
    assert model.drafted[-1][0] > 0
    model.drafted.clear()
    handle(running, generate(2, "abc"))
    for _ in range(3):
        running.step()
    # The toy model refuses guesses beside another feed, so this counts steps in which the other answer waits.
    assert {drafted for drafted, _ in model.drafted} == {0}


def test_answer_beside_one_of_another_adapter_is_not_drafted() -> None:
    model = drafting_model()
    running = loop(model)
    handle(running, generate(1, PAGE * 2))
    handle(running, msgspec.structs.replace(generate(2, PAGE * 2), adapter=1))
    for _ in range(30):
        running.step()
    assert {drafted for drafted, _ in model.drafted} == {0}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prefix_of_an_accepted_draft_is_found(layout: KvLayout) -> None:
    """The tokens of a draft are hashed once they are known, not before: another prompt may be compared with them at once."""
    running = loop(drafting_model(layout))
    prompt = PAGE * 2
    handle(running, generate(1, prompt, salt="a"))
    said = ""
    while len(said) < 2 * BLOCK:
        said += "".join(one.text for one in steps(running, 1)[0].progress)
    handle(running, generate(2, prompt + said + "!", salt="a"))
    reports: dict[int, list[AnswerProgress]] = {1: [], 2: []}
    while not running.idle:
        for one in steps(running, 1)[0].progress:
            reports[one.id].append(one)
    assert reports[2][0].cached_tokens >= len(prompt + said) - 2
    assert text(reports[2]) == (prompt + said + "!")[: 400 - len(prompt + said) - 1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_canceled_answer_leaves_what_was_accepted(layout: KvLayout) -> None:
    running = loop(drafting_model(layout))
    handle(running, generate(1, PAGE * 2, salt="a"))
    said = ""
    while len(said) < 60:
        said += "".join(one.text for one in steps(running, 1)[0].progress)
    handle(running, CancelGeneration(1))
    assert running.idle
    handle(running, generate(2, PAGE * 2 + said + "?", salt="a"))
    assert finish(running)[2][0].cached_tokens >= len(PAGE * 2 + said) - 1


def test_small_pool_leaves_room_for_the_draft() -> None:
    model = ToyModel(KvLayout.POOL, context_tokens=160, pool_tokens=160, step_tokens=32)
    running = loop(model)
    for identity in range(3):
        handle(running, generate(identity, "abcdefghij", salt=f"{identity}"))
        finish(running)
    model.drafted.clear()
    # What earlier answers left is given up for a draft.
    handle(running, generate(9, PAGE, max_tokens=60))
    assert text(finish(running)[9]) == PAGE[:60]
    assert max(accepted for _, accepted in model.drafted) > 8


def test_draft_fits_what_a_step_computes() -> None:
    model = drafting_model(step_tokens=5, slots=1)
    running = loop(model)
    handle(running, generate(1, PAGE))
    assert text(finish(running)[1]) == PAGE
    assert max(drafted for drafted, _ in model.drafted) == 5


def test_answer_about_images_can_be_drafted() -> None:
    model = drafting_model()
    running = loop(model)
    begin_with_images(running, generate(1, "#abcdefghijk#abcdefghijk", salt="s"), b"123456", b"123456")
    assert answer_text(finish(running)[1]) == b"1234abcdefghijk1234abcdefghijk"
    assert max(accepted for _, accepted in model.drafted) > 0


@pytest.mark.parametrize("delivered", [1, 30, 100])
def test_answer_continues_without_drafts_and_back(delivered: int) -> None:
    """Workers with and without speculation continue each other's answers."""
    command = generate(1, PAGE * 2, temperature=0.04, seed=3)
    answers = []
    for drafts in (True, False):
        running = loop(replace(drafting_model(), drafts=drafts))
        handle(running, command)
        first = answer_text(finish(running)[1])
        other = loop(replace(drafting_model(), drafts=not drafts))
        handle(other, generate(1, PAGE * 2, temperature=0.04, seed=3, delivered=first[:delivered]))
        answers += [first, first[:delivered] + answer_text(finish(other)[1])]
    assert len(set(answers)) == 1
    assert len(answers[0]) > 100


def test_prompts_are_paced_by_the_speed_of_now_after_a_long_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a new prompt is read by times of minutes ago."""
    model = drafting_model(context_tokens=4000, pool_tokens=16000, step_tokens=512)
    now, speed = 0.0, 1.0

    def clock() -> float:
        return now

    def run(feeds: object, compute=model.run) -> object:  # type: ignore[no-untyped-def]
        nonlocal now
        tokens = sum(len(feed.tokens) + len(feed.draft) for feed in feeds)  # type: ignore[attr-defined]
        now += speed * (0.01 + 0.0001 * tokens)
        return compute(feeds)

    monkeypatch.setattr(model, "run", run)
    running = EngineLoop(model, slots=4, clock=clock)
    handle(running, generate(1, PAGE * 28))
    for _ in range(10):
        running.step()
    speed = 4.0
    for _ in range(3 * lookup.PLAIN_EVERY):
        running.step()
    assert model.drafted[-2][0] > 8
    budget = running._scheduler._pace
    assert scheduler._median(budget._alone[1]) == pytest.approx(4 * 0.0101, rel=0.01)
    assert budget._steps_since.get(1, 0) < QUIET_EVERY


@dataclass(frozen=True)
class Arrival:
    #: A page that repeats, and how often.
    page: str
    times: int
    salt: str
    seed: int
    mistakes: float
    at: int
    n: int
    #: Canceled after this many steps; None means never.
    cancelled: int | None
    adapter: int

    @property
    def prompt(self) -> str:
        return self.page * self.times


arrivals = st.builds(
    Arrival,
    page=st.sampled_from(["h", "ab", "abcdefg", "once upon a time "]),
    times=st.integers(1, 6),
    salt=st.sampled_from(["", "a", "b"]),
    seed=st.integers(0, 5),
    mistakes=st.sampled_from([0.0, 0.05, 0.2, 1.0]),
    at=st.integers(0, 60),
    n=st.sampled_from([1, 1, 1, 2]),
    cancelled=st.one_of(st.none(), st.none(), st.integers(0, 30)),
    adapter=st.sampled_from([0, 0, 0, 1]),
)


@settings(max_examples=tiers.volume(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=st.sampled_from(LAYOUTS),
    slots=st.integers(1, 4),
    pool=st.integers(250, 500),
    step_tokens=st.integers(4, 40),
    arrived=st.lists(arrivals, min_size=1, max_size=4),
    cache_bytes=st.sampled_from([0, 100_000]),
)
def test_every_answer_equals_the_one_given_alone_without_drafts(
    *, layout: KvLayout, slots: int, pool: int, step_tokens: int, arrived: list[Arrival], cache_bytes: int
) -> None:
    model = ToyModel(layout, 240, pool if layout is KvLayout.POOL else 240 * slots, step_tokens, slots=slots)
    running = loop(model, cache_bytes)
    reports: dict[int, list[AnswerProgress]] = {identity: [] for identity in range(len(arrived))}
    for now in range(3000):
        if running.idle and now > 90:
            break
        for identity, one in enumerate(arrived):
            if one.at == now:
                asked = generate(identity, one.prompt, salt=one.salt, seed=one.seed, temperature=one.mistakes, n=one.n)
                handle(running, msgspec.structs.replace(asked, adapter=one.adapter))
            if one.cancelled is not None and one.at + one.cancelled == now:
                handle(running, CancelGeneration(identity))
        for progress in (running.step() or StepReport(())).progress:
            reports[progress.id].append(progress)
    assert running.idle
    assert model.begun == {}
    for identity, one in enumerate(arrived):
        for answer in range(one.n):
            expected = loop(plain(model))
            command = generate(9, one.prompt, seed=one.seed + answer, temperature=one.mistakes)
            handle(expected, msgspec.structs.replace(command, adapter=one.adapter))
            alone, got = answer_text(finish(expected)[9]), answer_text(reports[identity], answer)
            assert alone[: len(got)] == got
            if one.cancelled is None:
                assert got == alone
