import itertools
from collections import Counter
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.engine.engine_loop import EngineLoop
from services.inference.engine.engine_messages import (
    AnswerProgress,
    CancelGeneration,
    GenerationAccepted,
    GenerationRefused,
    PreparedPrompt,
    StartGeneration,
    StepReport,
)
from services.inference.engine.kv_slots import KvLayout
from services.inference.engine.sampling import Parameters
from services.inference.engine.special_tokens import IMAGE_MARK
from services.inference.images.prompt_images import DecodedImage
from shared import errors
from shared.types import FinishReason
from tests import tiers
from tests.services.inference.engine.commands import handle
from tests.services.inference.engine.toy_model import ToyModel

LAYOUTS = [KvLayout.STREAMS, KvLayout.POOL]
#: A seed with which the toy model answers "once upon a time" at length.
LONG = 3


def generate(
    identity: int,
    prompt: str,
    *,
    salt: str = "",
    delivered: bytes = b"",
    grammar: str = "",
    temperature: float = 0,
    seed: int = 1,
    max_tokens: int | None = None,
    n: int = 1,
    top_logprobs: int | None = None,
) -> StartGeneration:
    parameters = Parameters(temperature, 1, 0, seed, max_tokens=max_tokens, n=n, top_logprobs=top_logprobs)
    return StartGeneration(identity, PreparedPrompt(prompt, grammar), parameters, salt, tuple(delivered))


def loop(model: ToyModel) -> EngineLoop:
    return EngineLoop(model, slots=model.slots, clock=lambda: 0.0)


def finish(running: EngineLoop) -> dict[int, list[AnswerProgress]]:
    """Run until no work is left."""
    reports: dict[int, list[AnswerProgress]] = {}
    for _ in range(3000):
        if running.idle:
            break
        step = running.step()
        assert step is not None, "there is work, and nothing was done"
        for progress in step.progress:
            reports.setdefault(progress.id, []).append(progress)
    assert running.idle
    return reports


def text(reports: list[AnswerProgress], answer: int = 0) -> str:
    return "".join(progress.text for progress in reports if progress.answer == answer)


def answer_text(reports: list[AnswerProgress], answer: int = 0) -> bytes:
    return bytes(token for progress in reports if progress.answer == answer for token in progress.token_ids)


def alone(command: StartGeneration, **model: int | KvLayout) -> list[AnswerProgress]:
    running = loop(ToyModel(**model))  # type: ignore[arg-type]  # fields of one dataclass
    assert isinstance(handle(running, command), GenerationAccepted)
    return finish(running)[command.id]


# --- one answer ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_answer_comes_token_by_token_and_ends_once(layout: KvLayout) -> None:
    running = loop(ToyModel(layout))
    assert handle(running, generate(1, "häl")) == GenerationAccepted(1, 4)
    reports = finish(running)[1]
    assert [(progress.token_ids, progress.text, progress.finish) for progress in reports] == [
        ((ord("h"),), "h", None),
        ((0xC3,), "", None),
        ((0xA4,), "ä", None),
        ((ord("l"),), "l", None),
        ((), "", FinishReason.STOP),
    ]


@pytest.mark.parametrize(
    ("command", "context", "expected", "reason"),
    [
        pytest.param(generate(1, "abcdef"), 64, "abcdef", FinishReason.STOP, id="the model's own end"),
        pytest.param(generate(1, "abcdef", max_tokens=6), 64, "abcdef", FinishReason.LENGTH, id="the last token allowed"),
        pytest.param(generate(1, "abcdef", max_tokens=1), 64, "a", FinishReason.LENGTH, id="one token"),
        pytest.param(generate(1, "abcdef"), 10, "abcd", FinishReason.LENGTH, id="the context is used to its last token"),
        pytest.param(generate(1, "x"), 2, "x", FinishReason.LENGTH, id="the smallest prompt in the smallest context"),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_finish_reasons(command: StartGeneration, context: int, expected: str, reason: FinishReason, layout: KvLayout) -> None:
    reports = alone(command, layout=layout, context_tokens=context)
    assert text(reports) == expected
    assert [progress.finish for progress in reports if progress.finish] == [reason]
    assert reports[-1].finish is reason


def test_log_probabilities_come_with_their_tokens() -> None:
    reports = alone(generate(1, "ab", top_logprobs=0))
    assert [[one.drawn.token_id for one in progress.logprobs] for progress in reports] == [[ord("a")], [ord("b")], []]
    assert all(progress.logprobs == () for progress in alone(generate(1, "ab")))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_finished_sequence_leaves_only_its_reusable_prefix(layout: KvLayout) -> None:
    model = ToyModel(layout)
    running = loop(model)
    prompt = "a prompt that is worth to be found again"
    handle(running, generate(1, prompt, salt="a", max_tokens=5))
    first = finish(running)[1]
    handle(running, generate(2, prompt + "a prompt", salt="a"))
    second = finish(running)[2]
    assert model.begun == {}
    assert {progress.cached_tokens for progress in first} == {0}
    # The last drawn token is not in the slot's memory.
    assert {progress.cached_tokens for progress in second} == {len(prompt) + 4}
    assert text(second) == (prompt + "a prompt")[: 64 - len(prompt + "a prompt")]


# --- refusals -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        pytest.param(generate(2, "x" * 16), "16", id="a prompt that fills the context"),
        pytest.param(generate(2, ""), "empty", id="a prompt without tokens"),
        pytest.param(generate(2, "refuse"), "tokenizer", id="a prompt that the tokenizer refuses"),
        pytest.param(generate(2, "ab", grammar="refuse", n=3), "format", id="a grammar, found out at the last of three answers"),
        pytest.param(generate(2, "abc", delivered=b"abc\xff"), "delivered", id="an answer that was over"),
        pytest.param(generate(2, "abc", delivered=b"abc", max_tokens=3), "delivered", id="an answer that was at its limit"),
    ],
)
def test_invalid_request_is_refused_immediately_and_others_continue(command: StartGeneration, words: str) -> None:
    model = ToyModel(context_tokens=16)
    running = loop(model)
    handle(running, generate(1, "abc"))
    refused = handle(running, command)
    assert isinstance(refused, GenerationRefused)
    assert issubclass(errors.BY_CODE[refused.problem.code], errors.BadRequest)
    assert (refused.problem.code == "context_length_exceeded") is (command.prompt.text == "x" * 16)
    assert words in refused.problem.message
    assert set(model.begun) == {(1, 0)}
    assert text(finish(running)[1]) == "abc"


def test_model_gets_the_effective_limit() -> None:
    """Samplers reserve memory for the whole answer."""
    model = ToyModel(context_tokens=16)
    running = loop(model)
    handle(running, generate(1, "abc", max_tokens=2**63 - 1))
    handle(running, generate(2, "abc"))
    assert [parameters.max_tokens for parameters in model.begun.values()] == [13, 13]


def test_failed_decode_ends_the_process() -> None:
    running = loop(ToyModel(crash=True))
    handle(running, generate(1, "abc"))
    with pytest.raises(errors.ModelCrashed):
        running.step()


# --- steps ------------------------------------------------------------------------------------------------------------------------


def test_idle_loop_has_no_step() -> None:
    assert loop(ToyModel()).step() is None


def test_all_answers_of_a_step_are_in_one_report() -> None:
    running = loop(ToyModel(step_tokens=64))
    for identity in (1, 2, 3):
        handle(running, generate(identity, "abcdef"))
    step = running.step()
    assert step is not None
    assert [progress.id for progress in step.progress] == [1, 2, 3]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_step_report_has_the_counts_and_times(layout: KvLayout) -> None:
    clock = itertools.count()
    model = ToyModel(layout, batch_seconds=0.25)
    running = EngineLoop(model, slots=4, clock=lambda: float(next(clock)))
    handle(running, generate(1, "abc"))
    running.step()
    handle(running, generate(2, "twelve bytes"))
    model.batches.clear()
    step = running.step()
    assert model.batches == [[(1, 3, 1), (2, 0, 8)]]
    assert step == StepReport((AnswerProgress(1, (ord("b"),), "b"),), 2.0, 0.25, answering=1, read=8)


# --- cancellation -----------------------------------------------------------------------------------------------------------------


def test_cancel_frees_the_slot_before_the_next_step() -> None:
    model = ToyModel(slots=1)
    running = loop(model)
    handle(running, generate(1, "abcdefgh"))
    handle(running, generate(2, "xy"))
    running.step()
    assert handle(running, CancelGeneration(1)) is None
    step = running.step()
    assert step is not None
    assert [progress.id for progress in step.progress] == [2]
    assert set(model.begun) == {(2, 0)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("steps", range(8))
def test_cancel_at_any_moment_ends_all_answers_of_that_request_only(steps: int, layout: KvLayout) -> None:
    model = ToyModel(layout, slots=3)
    running = loop(model)
    handle(running, generate(1, "a prompt of some length", salt="a", n=4))
    handle(running, generate(2, "another one", salt="a"))
    steps_taken = [running.step() for _ in range(steps)]
    handle(running, CancelGeneration(1))
    assert set(model.begun) <= {(2, 0)}
    rest = finish(running)
    assert set(rest) <= {2}
    assert text([one for step in steps_taken if step for one in step.progress if one.id == 2] + rest.get(2, [])) == "another one"
    assert model.begun == {}


def test_cancel_of_a_finished_or_unknown_request_does_nothing() -> None:
    running = loop(ToyModel())
    handle(running, generate(1, "abc"))
    finish(running)
    for identity in (1, 7):
        assert handle(running, CancelGeneration(identity)) is None
    assert running.idle


# --- the same seed ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_seed_gives_the_same_answer_alone_and_in_a_batch(layout: KvLayout) -> None:
    command = generate(1, "once upon a time", temperature=1, seed=LONG, salt="a")
    expected = text(alone(command, layout=layout))
    others = loop(ToyModel(layout, slots=3))
    for identity in range(2, 8):
        handle(others, generate(identity, "once upon" + "x" * identity * 4, temperature=1, seed=identity, salt="ab"[identity % 2]))
    handle(others, command)
    assert len(expected) > 10
    assert text(finish(others)[1]) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_answers_differ_and_the_first_equals_a_single_one(layout: KvLayout) -> None:
    expected = text(alone(generate(1, "once upon a time", temperature=1, seed=LONG), layout=layout))
    model = ToyModel(layout, slots=3)
    running = loop(model)
    handle(running, generate(1, "once upon a time", temperature=1, seed=LONG, salt="a", n=4))
    reports = finish(running)[1]
    answers = [text(reports, answer) for answer in range(4)]
    assert answers[0] == expected
    assert len(set(answers)) == 4
    assert [sum(1 for one in reports if one.answer == answer and one.finish) for answer in range(4)] == [1, 1, 1, 1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resumed_answer_continues_at_every_split(layout: KvLayout) -> None:
    """It also continues in the middle of a character."""
    prompt = "grüße und küsse"
    whole = alone(generate(1, prompt), layout=layout)
    tokens = answer_text(whole)
    assert text(whole) == prompt
    for split in range(len(tokens)):
        shown = "".join(progress.text for progress in whole[:split])
        rest = alone(generate(1, prompt, delivered=tokens[:split]), layout=layout)
        assert (answer_text(rest), rest[-1].finish) == (tokens[split:], FinishReason.STOP)
        assert shown + text(rest) == text(whole)


def test_delivered_text_is_reported() -> None:
    accepted = handle(loop(model := ToyModel()), generate(1, "grüße", delivered="grü".encode()[:-1]))
    assert (accepted, model.begun.keys()) == (GenerationAccepted(1, 7, "gr"), {(1, 0)})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resumed_answer_keeps_the_limit_of_the_whole_answer(layout: KvLayout) -> None:
    whole = alone(generate(1, "once upon a time", temperature=1, seed=LONG, max_tokens=12), layout=layout)
    tokens = answer_text(whole)
    assert len(tokens) == 12
    for split in range(12):
        command = generate(1, "once upon a time", temperature=1, seed=LONG, max_tokens=12, delivered=tokens[:split])
        rest = alone(command, layout=layout)
        assert (answer_text(rest), rest[-1].finish) == (tokens[split:], FinishReason.LENGTH)


def test_model_gets_the_delivered_tokens() -> None:
    model = ToyModel()
    handle(loop(model), generate(1, "abcdef", delivered=b"ab"))
    assert model.delivered == {(1, 0): (ord("a"), ord("b"))}


# --- memory -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_part_of_a_prefix_that_cannot_be_settled_is_read_again_and_not_reported_as_cached(layout: KvLayout) -> None:
    model = ToyModel(layout)
    running = loop(model)
    prompt = "x" * 20
    handle(running, generate(1, prompt, salt="a"))
    finish(running)
    model.unsettled = 1
    handle(running, generate(2, prompt, salt="a"))
    reports = finish(running)[2]
    assert text(reports) == prompt
    assert reports[0].cached_tokens == 19 // 2


def test_slot_that_cannot_be_settled_is_not_shared() -> None:
    model = ToyModel()
    running = loop(model)
    prompt = "x" * 20
    for identity in (1, 2):
        handle(running, generate(identity, prompt, salt="a"))
        finish(running)
    model.unsettled = 1
    for identity in (3, 4, 5):
        handle(running, generate(identity, prompt, salt="a"))
    assert {identity: text(reports) for identity, reports in finish(running).items()} == {3: prompt, 4: prompt, 5: prompt}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prompt_starts_from_the_prefix_of_a_running_answer(layout: KvLayout) -> None:
    model = ToyModel(layout, context_tokens=256, pool_tokens=1024)
    running = loop(model)
    prompt = "p" * 80
    handle(running, generate(1, prompt, salt="a"))
    for _ in range(40):
        running.step()
    handle(running, generate(2, prompt + "p" * 20 + "q", salt="a"))
    assert finish(running)[2][0].cached_tokens == 100


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("length", range(1, 32))
@pytest.mark.parametrize("step_tokens", [4, 5, 8, 13])
def test_prompt_of_any_length_runs_with_all_the_memory(length: int, step_tokens: int, layout: KvLayout) -> None:
    model = ToyModel(layout, context_tokens=32, pool_tokens=32, step_tokens=step_tokens, slots=1)
    running = loop(model)
    handle(running, generate(1, "x" * length, salt="a"))
    assert text(finish(running)[1]) == "x" * min(length, 32 - length)
    assert sum(count for batch in model.batches for _, _, count in batch) < 32, "something was computed twice"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_last_tokens_of_a_prompt_take_a_step_of_their_own_if_slots_cannot_be_cut(layout: KvLayout) -> None:
    model = ToyModel(layout, can_cut=False, step_tokens=64)
    running = loop(model)
    for identity in (1, 2):
        handle(running, generate(identity, "a" * 20, salt="a", max_tokens=1))
        assert text(finish(running)[identity]) == "a"
    assert model.batches == [[(1, 0, 12)], [(1, 12, 8)], [(2, 19, 1)]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prompts_wait_for_the_same_prompt_if_slots_cannot_be_cut(layout: KvLayout) -> None:
    model = ToyModel(layout, can_cut=False, context_tokens=128)
    running = loop(model)
    handle(running, generate(1, "a" * 40, salt="a", max_tokens=1, n=2))
    handle(running, generate(2, "a" * 41, salt="a", max_tokens=1))
    # It begins alike, but there is no saved state to continue from.
    handle(running, generate(3, "a" * 24 + "b" * 16, salt="a", max_tokens=1))
    reports = finish(running)
    assert [reports[identity][0].cached_tokens for identity in (1, 2, 3)] == [0, 32, 0]
    computed = Counter[int]()
    for identity, _, count in itertools.chain(*model.batches):
        computed[identity] += count
    assert computed == {1: 48, 2: 9, 3: 40}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_answer_of_a_request_can_be_canceled(layout: KvLayout) -> None:
    model = ToyModel(layout, slots=2)
    running = loop(model)
    handle(running, generate(1, "abcdefgh", n=2, salt="a"))
    for _ in range(5):
        running.step()
    handle(running, generate(2, "xyz", max_tokens=1))
    running.cancel(1, 0)
    assert model.begun.keys() == {(1, 1), (2, 0)}
    for _ in range(2):
        running.step()
    assert {identity for identity, _, _ in model.batches[-1]} == {1, 2}, "the next request has its slot"
    reports = finish(running)
    assert text(reports[1], 0) == ""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_adapters_share_no_prefix_and_take_turns(layout: KvLayout) -> None:
    model, prompt = ToyModel(layout), "once upon a time there was"
    running = loop(model)
    commands = [msgspec.structs.replace(generate(number, prompt, salt="a"), adapter=number % 3) for number in range(6)]
    for command in commands[:3]:
        handle(running, command)
    reports = finish(running)
    assert [reports[number][0].cached_tokens for number in range(3)] == [0, 0, 0]
    assert all(adapter in model.adapters[at : at + 4] for adapter in range(3) for at in range(6, 30))
    for command in commands[3:]:
        handle(running, command)
        reports |= finish(running)
    assert [reports[number][0].cached_tokens for number in range(3, 6)] == [len(prompt) - 1] * 3
    assert all(text(each) == prompt for each in reports.values())


def test_unknown_adapter_is_refused() -> None:
    refused = handle(loop(ToyModel()), msgspec.structs.replace(generate(1, "once"), adapter=17))
    assert isinstance(refused, GenerationRefused)
    assert refused.problem.message == "there is no such adapter"


@dataclass(frozen=True)
class Arrival:
    #: In fortieths of the context: a common beginning, and an end.
    prompt: tuple[int, int]
    salt: str
    seed: int
    at: int
    n: int
    #: Canceled after this many steps; None means never.
    cancelled: int | None
    adapter: int

    def prompt_text(self, scale: int) -> str:
        return "h" * self.prompt[0] * scale + "t" * self.prompt[1] * scale


arrivals = st.builds(
    Arrival,
    prompt=st.tuples(st.integers(1, 28), st.integers(0, 11)),
    salt=st.sampled_from(["", "a", "b"]),
    seed=st.integers(0, 5),
    at=st.integers(0, 40),
    n=st.integers(1, 3),
    cancelled=st.one_of(st.none(), st.integers(0, 30)),
    adapter=st.integers(0, 2),
)


@settings(max_examples=tiers.volume(150), deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    slots=st.integers(1, 4),
    context=st.sampled_from([40, 160]),
    pool=st.integers(40, 110),
    step_tokens=st.integers(4, 16),
    arrived=st.lists(arrivals, min_size=1, max_size=6),
    unsettled=st.integers(0, 2),
)
def test_every_answer_equals_the_one_given_alone(
    *, layout: KvLayout, slots: int, context: int, pool: int, step_tokens: int, arrived: list[Arrival], unsettled: int
) -> None:
    """The toy model checks each batch. In the exact layout, each slot has its own cells."""
    scale = context // 40
    model = ToyModel(layout, context, (pool if layout is KvLayout.POOL else 40 * slots) * scale, step_tokens, slots, unsettled=unsettled)
    running = loop(model)
    reports: dict[int, list[AnswerProgress]] = {identity: [] for identity in range(len(arrived))}
    for now in range(3000):
        if running.idle and now > 75:
            break
        for identity, one in enumerate(arrived):
            if one.at == now:
                asked = generate(identity, one.prompt_text(scale), salt=one.salt, seed=one.seed, temperature=1, n=one.n)
                handle(running, msgspec.structs.replace(asked, adapter=one.adapter))
            if one.cancelled is not None and one.at + one.cancelled == now:
                handle(running, CancelGeneration(identity))
        for progress in (running.step() or StepReport(())).progress:
            reports[progress.id].append(progress)
    assert running.idle
    assert model.begun == {}
    for identity, one in enumerate(arrived):
        for answer in range(one.n):
            command = generate(9, one.prompt_text(scale), seed=one.seed + answer, temperature=1)
            expected = alone(msgspec.structs.replace(command, adapter=one.adapter), layout=layout, context_tokens=context)
            got = answer_text(reports[identity], answer)
            assert answer_text(expected)[: len(got)] == got
            if one.cancelled is None:
                assert got == answer_text(expected)


# --- images -------------------------------------------------------------------------------------------------------------------


def begin_with_images(running: EngineLoop, command: StartGeneration, *pixels: bytes) -> GenerationAccepted:
    """Begin a request; ``#`` in the prompt stands for an image."""
    command = msgspec.structs.replace(command, prompt=PreparedPrompt(command.prompt.text.replace("#", IMAGE_MARK)))
    prompt = running.read_images(command, [DecodedImage(1, len(each) // 3, each) for each in pixels], lambda: True)
    accepted = running.begin(command, prompt)
    assert isinstance(accepted, GenerationAccepted)
    return accepted


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_are_fed_apart_and_never_in_part(layout: KvLayout) -> None:
    """The toy model checks each feed."""
    running = loop(ToyModel(layout=layout))
    accepted = begin_with_images(running, generate(1, "#abcdefghijklm#no", salt="s"), b"123456", b"ABC456")
    assert (accepted.prompt_tokens, accepted.image_seconds) == (23, 0.5)
    assert answer_text(finish(running)[1]) == b"1234abcdefghijklmABC4no"
    # The second image begins like the earlier one, but isn't the same, so it isn't reused.
    begin_with_images(running, generate(2, "#abcdefghijklm#no", salt="s"), b"123456", b"ABC756")
    reports = finish(running)[2]
    assert (answer_text(reports), max(report.cached_tokens for report in reports)) == (b"1234abcdefghijklmABC7no", 17)
    begin_with_images(running, generate(3, "#abcdefghijklm#no more", salt="s"), b"123456", b"ABC456")
    assert max(report.cached_tokens for report in finish(running)[3]) == 23


@given(
    st.sampled_from(LAYOUTS),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), min_size=1, max_size=12),
    st.integers(8, 24),
)
def test_answers_to_images_are_those_alone(layout: KvLayout, asked: list[tuple[int, int, bool]], step_tokens: int) -> None:
    """Neither the batch nor a small pool changes an answer."""
    pool = 64 if layout is KvLayout.POOL else 256
    running = loop(ToyModel(layout=layout, pool_tokens=pool, step_tokens=step_tokens))
    expected, steps = {}, []
    for identity, (one, two, is_shared) in enumerate(asked, 1):
        text = "x" * one + "#" + "y" * two + "#z"
        begin_with_images(running, generate(identity, text, salt="s" if is_shared else ""), b"123456", b"ab%d456" % two)
        expected[identity] = b"x" * one + b"1234" + b"y" * two + b"ab%d4" % two + b"z"
        if two == 1 and (step := running.step()) is not None:
            steps += step.progress
    rest = finish(running)
    said = {identity: answer_text([one for one in steps if one.id == identity] + rest.get(identity, [])) for identity in expected}
    assert said == expected


def test_prompts_are_read_while_images_are_encoded_all_the_time() -> None:
    running = loop(ToyModel())
    handle(running, generate(1, "once upon a time", temperature=1, seed=LONG, max_tokens=40))
    for _ in range(4):
        running.step()
    # Two answers at once are new, so one step measures them alone.
    handle(running, generate(2, "once", temperature=1, seed=LONG, max_tokens=40))
    running.step(is_usual=False)
    handle(running, generate(3, "a third prompt", max_tokens=4))
    answered = {progress.id for _ in range(10) if (step := running.step(is_usual=False)) for progress in step.progress}
    assert answered == {1, 2, 3}


def test_seconds_of_a_batch_answer_are_those_of_its_own_steps() -> None:
    """The clock ticks at the start and at the end of each step."""
    ticks = itertools.count()
    running = EngineLoop(ToyModel(KvLayout.STREAMS, slots=2), slots=2, clock=lambda: float(next(ticks)))
    handle(running, generate(1, "once upon a time", seed=LONG, max_tokens=20))
    handle(running, msgspec.structs.replace(generate(2, "once upon", max_tokens=5), is_batch=True))
    seconds, steps = dict[int, float](), 0
    while not running.idle:
        report = running.step()
        assert report is not None
        steps += 1
        seconds |= {one.id: one.seconds for one in report.progress}
    assert seconds[1] == 0.0
    assert 5 <= seconds[2] < steps


def test_report_counts_batch_answers_that_lose_their_slot() -> None:
    running = loop(ToyModel(KvLayout.STREAMS, slots=1))
    handle(running, msgspec.structs.replace(generate(1, "once", max_tokens=5), is_batch=True))
    assert [report.preempted for _ in range(2) if (report := running.step()) is not None] == [0, 0]
    handle(running, generate(2, "live", max_tokens=5))
    assert [report.preempted for _ in range(2) if (report := running.step()) is not None] == [1, 0]
