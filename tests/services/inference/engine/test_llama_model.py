"""The real model in this process: behavior that only llama.cpp can show."""

import math
import re
from collections.abc import Iterator

import msgspec
import pytest

from services.inference.engine import engine_messages, llama_model, prompt_cache
from services.inference.engine.engine_loop import EngineLoop
from services.inference.engine.engine_messages import (
    AnswerProgress,
    CancelGeneration,
    GenerationAccepted,
    GenerationRefused,
    KvMode,
    PreparedPrompt,
    StartGeneration,
    ThoughtBudget,
)
from services.inference.engine.llama_model import LlamaModel
from services.inference.engine.sampling import Parameters
from services.inference.models import model_discovery
from services.inference.structured_output import lark
from shared.types import FinishReason
from tests import tiers
from tests.services.inference.engine.commands import handle

SLOTS = 16
CONTEXT = 256
QUESTION = "Name three colours of the rainbow."
#: A high temperature with every penalty, so that any difference shows at once.
WILD = Parameters(1.5, 1.0, 0, 7, max_tokens=8, repeat_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.5, min_p=0.01)
GREEDY = Parameters(0, 1, 0, 1, max_tokens=5)
AT_NIGHT = pytest.mark.nightly("long")
YES_OR_NO = lark.grammar('"yes" | "no"')


def opened(mode: KvMode, slots: int = SLOTS) -> Iterator[LlamaModel]:
    # One thread: the tests share two cores, and llama.cpp's threads spin while they wait for each other.
    load = engine_messages.LoadCommand(str(model_discovery.packaged()), slots, CONTEXT, threads=1, gpu_layers=0, kv_mode=mode)
    with llama_model.opened(load, lambda _: None) as model:
        model.show(("<|im_start|>",))
        yield model


@pytest.fixture(scope="module")
def exact() -> Iterator[LlamaModel]:
    yield from opened(KvMode.EXACT)


@pytest.fixture(scope="module")
def shared() -> Iterator[LlamaModel]:
    yield from opened(KvMode.SHARED)


@pytest.fixture(scope="module")
def few() -> Iterator[LlamaModel]:
    """So few slots that each has its own cells, and answers and prompts have separate batches, without flash attention."""
    yield from opened(KvMode.SHARED, slots=4)


def loop(model: LlamaModel, slots: int = SLOTS) -> EngineLoop:
    """Return a loop with empty slots."""
    for slot in range(slots):
        model.clear(slot)
    return EngineLoop(model, slots=slots)


@pytest.mark.parametrize("mode", tiers.by_day(KvMode, KvMode.SHARED, group="long"))
def test_a_prompt_that_lost_its_slot_is_restored_with_the_same_bits(
    mode: KvMode, exact: LlamaModel, shared: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_cache, "WORTH_SAVING_TOKENS", 16)
    model = exact if mode is KvMode.EXACT else shared
    loop(model)
    running = EngineLoop(model, slots=2, cache_bytes=2**28)
    questions = [QUESTION, "What is the capital of France, and how many people live there?", "Write a line about the sea in winter."]
    first = finish(running, start_command(1, questions[0], WILD, salt="a"))[1]
    for number in (2, 3, 4):
        finish(running, start_command(number, f"{questions[number % 2 + 1]} {number}", GREEDY, salt=f"b{number}"))
    again = finish(running, start_command(5, questions[0], WILD, salt="a"))[5]
    assert first[0].cached_tokens == 0
    assert again[0].cached_tokens > 16
    if mode is KvMode.EXACT:
        assert [one.token_ids for one in again] == [one.token_ids for one in first]
    delivered = tuple(token for one in first[:3] for token in one.token_ids)
    rest = finish(running, start_command(6, questions[0], WILD, salt="a", delivered=delivered))[6]
    if mode is KvMode.EXACT:
        assert [one.token_ids for one in rest] == [one.token_ids for one in first[3:]]


def start_command(
    identity: int = 1,
    question: str = QUESTION,
    parameters: Parameters = GREEDY,
    *,
    salt: str = "",
    delivered: tuple[int, ...] = (),
    grammar: str = "",
) -> StartGeneration:
    chat = f"<|im_start|>system\nAnswer.<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return StartGeneration(identity, PreparedPrompt(chat, grammar), parameters, salt, delivered)


def finish(running: EngineLoop, *commands: StartGeneration) -> dict[int, list[AnswerProgress]]:
    for command in commands:
        assert isinstance(handle(running, command), GenerationAccepted)
    reports: dict[int, list[AnswerProgress]] = {command.id: [] for command in commands}
    while not running.idle:
        step = running.step()
        assert step is not None
        for progress in step.progress:
            reports[progress.id].append(progress)
    return reports


def answer(model: LlamaModel, command: StartGeneration) -> list[AnswerProgress]:
    return finish(loop(model), command)[command.id]


def tokens(reports: list[AnswerProgress], number: int = 0) -> tuple[int, ...]:
    return tuple(token for progress in reports if progress.answer == number for token in progress.token_ids)


def text(reports: list[AnswerProgress]) -> str:
    return "".join(progress.text for progress in reports)


def changed(parameters: Parameters, **changes: object) -> Parameters:
    fields = {name: getattr(parameters, name) for name in Parameters.__struct_fields__}
    return Parameters(**{**fields, **changes})


# --- the same seed ------------------------------------------------------------------------------------------------------------------


def test_exact_layout_gives_the_same_answer_alone_batched_and_resumed(exact: LlamaModel) -> None:
    command = start_command(1, parameters=WILD, salt="a")
    alone = tokens(answer(exact, command))
    assert len(alone) == 8
    others = [
        start_command(identity, f"{identity} times {identity} is", changed(WILD, seed=identity), salt="a") for identity in range(2, 17)
    ]
    assert tokens(finish(loop(exact), *others[:9], command, *others[9:])[1]) == alone
    for split in (1, 4, 7):
        rest = answer(exact, start_command(1, parameters=WILD, delivered=alone[:split]))
        assert tokens(rest) == alone[split:]


def test_sequences_with_the_same_parameters_are_independent(exact: LlamaModel) -> None:
    """They share samplers, and the shortest ends first."""
    warm = [Parameters(1.5, 0.95, 40, seed, max_tokens=length) for seed, length in ((1, 2), (2, 8), (3, 5))]
    alone = [tokens(answer(exact, start_command(1, parameters=each))) for each in warm]
    together = finish(loop(exact), *(start_command(number, parameters=each) for number, each in enumerate(warm)))
    assert [tokens(together[number]) for number in range(len(warm))] == alone
    assert [len(each) for each in alone] == [2, 8, 5]
    assert alone[0] != alone[1][:2] or alone[1][:5] != alone[2]


def test_exact_layout_gives_the_same_answer_with_a_cached_prefix(exact: LlamaModel) -> None:
    """The prefix is the slot's own, or copied from a busy slot."""
    question = QUESTION + " Begin with the one that is nearest to the sky, and say why, in your own words." * 3
    long = start_command(1, question, WILD, salt="a")
    running = loop(exact)
    first = finish(running, long)[1]
    again = finish(running, long)[1]
    # Another sequence holds this slot when the next one starts.
    handle(running, start_command(2, question, changed(WILD, seed=9), salt="a"))
    for _ in range(5):
        running.step()
    handle(running, long)
    reports: list[AnswerProgress] = []
    while (step := running.step()) is not None:
        reports += [progress for progress in step.progress if progress.id == 1]
    prompt = exact.prompt_tokens(long.prompt)
    assert [one[0].cached_tokens for one in (first, again, reports)] == [0, len(prompt) - 1, len(prompt) - 1]
    assert tokens(first) == tokens(again) == tokens(reports)


def test_several_answers_differ_and_the_first_equals_a_single_one(shared: LlamaModel) -> None:
    alone = tokens(answer(shared, start_command(parameters=changed(WILD, max_tokens=6))))
    reports = answer(shared, start_command(parameters=changed(WILD, max_tokens=6, n=3), salt="a"))
    answers = [tokens(reports, number) for number in range(3)]
    assert answers[0] == alone
    assert len(set(answers)) == 3
    prompt = len(shared.prompt_tokens(start_command().prompt))
    assert [next(one.cached_tokens for one in reports if one.answer == number) for number in range(3)] == [0, prompt - 1, prompt - 1]


# --- sharing ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fixture", "slots"), [("shared", SLOTS), pytest.param("few", 4, marks=AT_NIGHT)])
def test_prefix_is_shared_with_a_busy_slot_but_not_across_tenants(
    fixture: str, slots: int, exact: LlamaModel, request: pytest.FixtureRequest
) -> None:
    model: LlamaModel = request.getfixturevalue(fixture)
    expected = text(answer(exact, start_command()))
    running = loop(model, slots)
    handle(running, start_command(9, parameters=changed(GREEDY, max_tokens=60, ignore_eos=True), salt="a"))
    running.step()
    reports = finish_besides(running, start_command(1, salt="a"), start_command(2, salt="b"), start_command(3))
    handle(running, CancelGeneration(9))
    assert [reports[identity][0].cached_tokens for identity in (1, 2, 3)] == [len(model.prompt_tokens(start_command().prompt)) - 1, 0, 0]
    assert [text(reports[identity]) for identity in (1, 2, 3)] == [expected] * 3


@AT_NIGHT
def test_without_flash_attention_answers_do_not_share_a_batch_with_prompts(
    few: LlamaModel, exact: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = text(answer(exact, start_command(question=f"{QUESTION} {QUESTION}")))
    running, sizes = loop(few, 4), list[list[int]]()
    decode = few._decode
    monkeypatch.setattr(few, "_decode", lambda batch: (sizes[-1].append(batch.n_tokens), decode(batch)))
    handle(running, start_command(8, parameters=changed(GREEDY, max_tokens=99, ignore_eos=True)))
    handle(running, start_command(9, parameters=changed(WILD, max_tokens=99, ignore_eos=True)))
    reports = list[AnswerProgress]()
    for step in range(60):
        if step == 20:
            handle(running, start_command(1, f"{QUESTION} {QUESTION}"))
        sizes.append([])
        report = running.step()
        reports += [one for one in report.progress if one.id == 1] if report else []
    for identity in (8, 9):
        handle(running, CancelGeneration(identity))
    assert text(reports) == expected
    assert {batch[-1] for batch in sizes[20:] if len(batch) == 2} == {2}, "the two answers"
    assert sum(batch[0] for batch in sizes[20:] if len(batch) == 2) == len(
        few.prompt_tokens(start_command(1, f"{QUESTION} {QUESTION}").prompt)
    )


def finish_besides(running: EngineLoop, *commands: StartGeneration) -> dict[int, list[AnswerProgress]]:
    """Run until these are finished, whatever else runs."""
    for command in commands:
        handle(running, command)
    reports: dict[int, list[AnswerProgress]] = {command.id: [] for command in commands}
    while not all(one and one[-1].finish for one in reports.values()):
        step = running.step()
        assert step is not None
        for progress in step.progress:
            reports.get(progress.id, []).append(progress)
    return reports


# --- sampling -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "ignore_eos"),
    [(0, False), (1.0, True), pytest.param(0, True, marks=AT_NIGHT), pytest.param(1.0, False, marks=AT_NIGHT)],
)
def test_answer_follows_its_grammar_and_ends_with_it(shared: LlamaModel, temperature: float, ignore_eos: bool) -> None:
    parameters = changed(GREEDY, temperature=temperature, ignore_eos=ignore_eos, repeat_penalty=1.1)
    reports = answer(shared, start_command(parameters=parameters, grammar=YES_OR_NO))
    assert (text(reports) in ("yes", "no"), reports[-1].finish) == (True, FinishReason.STOP)


def test_grammar_that_exceeds_a_limit_in_the_middle_ends_the_answer_as_cut(shared: LlamaModel) -> None:
    costly = lark.grammar('"Sure" x', "x: a{0,1000}", 'a: b{0,1000} | "q" a', 'b: c{0,1000} | "r" b', 'c: /[a-z ]/ | "u" c')
    reports = answer(shared, start_command(parameters=changed(GREEDY, max_tokens=40), grammar=costly))
    assert (reports[-1].finish, reports[-1].token_ids) == (FinishReason.LENGTH, ())
    assert 0 < len(tokens(reports)) < 40


def test_shown_special_token_is_text_in_answers_and_grammars(shared: LlamaModel) -> None:
    (shown,) = shared._vocabulary.shown_tokens  # no other code needs it
    assert shared.piece(shown) == b"<|im_start|>"
    reports = answer(
        shared, start_command(grammar=lark.grammar('"a<|im_start|>b"'), parameters=changed(GREEDY, logit_bias=((shown, 100.0),)))
    )
    assert (text(reports), tokens(reports)[1]) == ("a<|im_start|>b", shown)


def test_grammar_begins_at_its_trigger(shared: LlamaModel) -> None:
    """Nothing is constrained before the trigger, which here begins in the middle of a token."""
    free = text(answer(shared, start_command()))
    word = free.split()[1]
    command = start_command(parameters=changed(GREEDY, max_tokens=20))
    prompt = msgspec.structs.replace(command.prompt, grammar=lark.grammar(f'"{word[1:]}" /=[0-9]+;/'), triggers=(f"{word[0]}({word[1:]})",))
    reports = answer(shared, msgspec.structs.replace(command, prompt=prompt))
    before, found, behind = text(reports).partition(word)
    assert free.startswith(before + found)
    assert re.fullmatch(r"=[0-9]+;?", behind)
    assert reports[-1].finish is (FinishReason.STOP if behind.endswith(";") else FinishReason.LENGTH)


def test_thoughts_are_closed_at_their_budget(shared: LlamaModel) -> None:
    command = start_command(parameters=changed(GREEDY, max_tokens=20))
    free = tokens(answer(shared, command))
    limited = msgspec.structs.replace(command, prompt=msgspec.structs.replace(command.prompt, budget=ThoughtBudget(3, "", ("</think>",))))
    reports = answer(shared, limited)
    assert tokens(reports)[:3] == free[:3]
    assert text(reports).startswith("".join(one.text for one in reports[:3]) + "</think>")
    rest = answer(shared, msgspec.structs.replace(limited, delivered=tokens(reports)[:5]))
    assert tokens(rest) == tokens(reports)[5:]


def test_model_that_ends_in_its_thoughts_still_follows_the_grammar_behind_them(shared: LlamaModel) -> None:
    ending = tuple((token, 100.0) for token in shared._vocabulary.end_tokens)
    command = start_command(parameters=changed(GREEDY, max_tokens=20, logit_bias=ending))
    assert text(answer(shared, command)) == ""
    budget = ThoughtBudget(None, "", ("</think>",), must_continue=True)
    prompt = msgspec.structs.replace(command.prompt, grammar=lark.grammar('"one two"'), triggers=(r"</think>()",), budget=budget)
    reports = answer(shared, msgspec.structs.replace(command, prompt=prompt))
    assert (text(reports), reports[-1].finish) == ("</think>one two", FinishReason.STOP)


def test_grammar_continues_after_delivered_tokens(shared: LlamaModel) -> None:
    grammar = lark.grammar('"one two three"')
    whole = tokens(answer(shared, start_command(grammar=grammar)))
    for split in (1, len(whole) - 1):
        assert tokens(answer(shared, start_command(grammar=grammar, delivered=whole[:split]))) == whole[split:]


@pytest.mark.parametrize("temperature", [1.0, pytest.param(1e-3, marks=AT_NIGHT)])
def test_top_tokens_are_sorted_with_their_probabilities(shared: LlamaModel, temperature: float) -> None:
    parameters = changed(GREEDY, temperature=temperature, top_logprobs=20, max_tokens=4)
    for progress in answer(shared, start_command(parameters=parameters)):
        (one,) = progress.logprobs
        chances = [chance.logprob for chance in one.top]
        assert len({chance.token_id for chance in one.top}) == 20
        assert chances == sorted(chances, reverse=True)
        assert all(chance <= 0 for chance in chances)
        assert 0.1 < sum(math.exp(chance) for chance in chances) <= 1 + 1e-6
        assert (one.drawn.token_id,) == progress.token_ids
        assert one.drawn.logprob <= chances[0]


def test_greedy_token_is_the_most_likely(shared: LlamaModel) -> None:
    for progress in answer(shared, start_command(parameters=changed(GREEDY, top_logprobs=1))):
        (one,) = progress.logprobs
        assert one.top == (one.drawn,)
        assert one.drawn.piece == shared.piece(one.drawn.token_id)


def test_log_probabilities_of_drawn_tokens_only(shared: LlamaModel) -> None:
    parameters = changed(WILD, top_logprobs=0, max_tokens=4)
    reports = answer(shared, start_command(parameters=parameters))
    assert [one.drawn.token_id for progress in reports for one in progress.logprobs] == list(tokens(reports))
    assert all(one.top == () for progress in reports for one in progress.logprobs)
    assert tokens(reports) == tokens(answer(shared, start_command(parameters=changed(parameters, top_logprobs=None))))


def test_bias_forces_or_bans_a_token(shared: LlamaModel) -> None:
    free = tokens(answer(shared, start_command()))
    forced = free[3]
    assert set(tokens(answer(shared, start_command(parameters=changed(GREEDY, logit_bias=((forced, 100.0),)))))) == {forced}
    banned = tuple((token, -100.0) for token in set(free))
    assert not set(tokens(answer(shared, start_command(parameters=changed(GREEDY, logit_bias=banned))))) & set(free)


def test_each_penalty_prevents_repetition(shared: LlamaModel) -> None:
    liked = tokens(answer(shared, start_command()))[1]
    parameters = changed(GREEDY, logit_bias=((liked, 8.0),))
    counts = [
        tokens(answer(shared, start_command(parameters=changed(parameters, **penalty)))).count(liked)
        for penalty in ({}, {"repeat_penalty": 2.0}, {"frequency_penalty": 2.0}, {"presence_penalty": 2.0})
    ]
    assert counts[0] > 1
    assert all(count < counts[0] for count in counts[1:])


def test_ignore_eos_continues_after_the_end_token(shared: LlamaModel) -> None:
    ends = [(token, 100.0) for token in sorted(shared._vocabulary.end_tokens)]  # so that the model wants nothing else
    wants_to_end = changed(GREEDY, logit_bias=tuple(ends))
    assert (tokens(ended := answer(shared, start_command(parameters=wants_to_end))), ended[-1].finish) == ((), FinishReason.STOP)
    goes_on = answer(shared, start_command(parameters=changed(wants_to_end, ignore_eos=True)))
    assert (len(tokens(goes_on)), goes_on[-1].finish) == (5, FinishReason.LENGTH)


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param(changed(WILD, top_k=0, min_p=0.0, max_tokens=2), id="nothing is cut off"),
        pytest.param(changed(WILD, top_k=1, max_tokens=2), id="only the likeliest"),
        pytest.param(changed(WILD, top_k=1_000_000, top_p=5e-324, min_p=1.0, max_tokens=2), id="as far as it goes"),
        pytest.param(changed(WILD, temperature=0.001, repeat_penalty=0.1, max_tokens=2), id="the least that there is"),
        pytest.param(changed(WILD, seed=2**63 - 1, max_tokens=2), id="the largest seed"),
        # Not wild: on some processors that is thousands of tokens without any of these.
        pytest.param(changed(GREEDY, max_tokens=2**63 - 1, stop=("e", " ", "a", "\n")), id="more tokens than 32 bits can say"),
    ],
)
def test_extreme_parameters_give_an_answer(shared: LlamaModel, parameters: Parameters) -> None:
    reports = answer(shared, start_command(parameters=parameters))
    assert reports[-1].finish is not None
    assert tokens(reports) == tokens(answer(shared, start_command(parameters=parameters)))


# --- refusals -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        pytest.param(
            start_command(parameters=changed(GREEDY, logit_bias=((49152, 0.0),))), "logit_bias", id="a bias for a token beyond the last"
        ),
        pytest.param(start_command(delivered=(49152,)), "delivered", id="a delivered token beyond the last"),
        pytest.param(start_command(delivered=(2**31 - 1,)), "delivered", id="a delivered token far beyond the last"),
        pytest.param(start_command(delivered=(-1,)), "delivered", id="a delivered token below the first"),
        pytest.param(
            start_command(delivered=(100,), grammar=YES_OR_NO), "delivered", id="a delivered token that the grammar does not allow"
        ),
        pytest.param(start_command(grammar=lark.grammar("(")), "format", id="half a grammar"),
        pytest.param(start_command(grammar=lark.grammar("x", "x: x")), "no answer fits", id="a grammar that no answer fits"),
        pytest.param(start_command(delivered=(0,), grammar=YES_OR_NO), "delivered", id="an end before the answer fits its grammar"),
        pytest.param(start_command(question="word " * CONTEXT * SLOTS), "tokens", id="a prompt that is too long"),
    ],
)
def test_values_that_would_crash_llama_cpp_are_refused(shared: LlamaModel, command: StartGeneration, words: str) -> None:
    running = loop(shared)
    refused = handle(running, command)
    assert isinstance(refused, GenerationRefused)
    assert refused.problem.code == ("context_length_exceeded" if words == "tokens" else "bad_request")
    assert words in refused.problem.message
    assert running.idle
