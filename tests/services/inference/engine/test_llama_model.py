"""The real model in this process: behavior that only llama.cpp can show. The tests have no model with a recurrent state, which cannot be
cut back to a prefix; the tests of the loop cover slots that cannot be settled."""

import math
from collections.abc import Iterator

import pytest

from services.inference.engine import engine_messages, llama_model
from services.inference.engine.engine_loop import EngineLoop
from services.inference.engine.engine_messages import (
    AnswerProgress,
    CancelGeneration,
    GenerationAccepted,
    GenerationRefused,
    StartGeneration,
)
from services.inference.engine.kv_slots import KvMode
from services.inference.engine.llama_model import LlamaModel
from services.inference.engine.sampling import Parameters
from services.inference.models import model_discovery
from shared.api.generation import ChatMessage
from shared.types import FinishReason
from tests.services.inference.engine.commands import handle

SLOTS = 16
CONTEXT = 256
QUESTION = "Name three colours of the rainbow."
#: Wanders, is held together by all that can be, and so shows each difference at once.
WILD = Parameters(1.5, 1.0, 0, 7, max_tokens=8, repeat_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.5, min_p=0.01)
GREEDY = Parameters(0, 1, 0, 1, max_tokens=5)
YES_OR_NO = 'root ::= "yes" | "no"'


def opened(mode: KvMode) -> Iterator[LlamaModel]:
    # One thread: the tests share two cores, and llama.cpp's threads wait for each other by spinning.
    load = engine_messages.LoadCommand(str(model_discovery.packaged()), SLOTS, CONTEXT, threads=1, gpu_layers=0, kv_mode=mode)
    with llama_model.opened(load, lambda _: None) as model:
        yield model


@pytest.fixture(scope="module")
def exact() -> Iterator[LlamaModel]:
    yield from opened(KvMode.EXACT)


@pytest.fixture(scope="module")
def fast() -> Iterator[LlamaModel]:
    yield from opened(KvMode.FAST)


def loop(model: LlamaModel) -> EngineLoop:
    """With nothing in its slots."""
    for slot in range(SLOTS):
        model.clear(slot)
    return EngineLoop(model, slots=SLOTS, mode=model._mode)  # no other code needs it


def start_command(
    identity: int = 1,
    question: str = QUESTION,
    parameters: Parameters = GREEDY,
    *,
    salt: str = "",
    delivered: tuple[int, ...] = (),
    grammar: str = "",
) -> StartGeneration:
    # With its own system message, which is shorter than the template's.
    messages = (ChatMessage("system", "Answer."), ChatMessage("user", question))
    return StartGeneration(identity, messages, parameters, salt, delivered, grammar)


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
    """They share their samplers, and the shortest ends first."""
    calm = [Parameters(0.9, 0.95, 40, seed, max_tokens=length) for seed, length in ((1, 2), (2, 8), (3, 5))]
    alone = [tokens(answer(exact, start_command(1, parameters=each))) for each in calm]
    together = finish(loop(exact), *(start_command(number, parameters=each) for number, each in enumerate(calm)))
    assert [tokens(together[number]) for number in range(len(calm))] == alone
    assert [len(each) for each in alone] == [2, 8, 5]
    assert alone[0] != alone[1][:2] or alone[1][:5] != alone[2]


def test_exact_layout_gives_the_same_answer_with_a_cached_prefix(exact: LlamaModel) -> None:
    """Own, and copied from a slot that is busy."""
    long = start_command(
        1, QUESTION + " Begin with the one that is nearest to the sky, and say why, in your own words." * 3, WILD, salt="a"
    )
    running = loop(exact)
    first = finish(running, long)[1]
    again = finish(running, long)[1]
    # Another sequence holds this slot when the next one starts.
    handle(running, start_command(2, long.messages[1].content, changed(WILD, seed=9), salt="a"))
    for _ in range(5):
        running.step()
    handle(running, long)
    reports: list[AnswerProgress] = []
    while (step := running.step()) is not None:
        reports += [progress for progress in step.progress if progress.id == 1]
    prompt = exact.prompt_tokens(long.messages)
    assert [one[0].cached_tokens for one in (first, again, reports)] == [0, len(prompt) - 1, len(prompt) - 1]
    assert tokens(first) == tokens(again) == tokens(reports)


def test_several_answers_differ_and_the_first_equals_a_single_one(fast: LlamaModel) -> None:
    alone = tokens(answer(fast, start_command(parameters=changed(WILD, max_tokens=6))))
    reports = answer(fast, start_command(parameters=changed(WILD, max_tokens=6, n=3), salt="a"))
    answers = [tokens(reports, number) for number in range(3)]
    assert answers[0] == alone
    assert len(set(answers)) == 3
    prompt = len(fast.prompt_tokens(start_command().messages))
    assert [next(one.cached_tokens for one in reports if one.answer == number) for number in range(3)] == [0, prompt - 1, prompt - 1]


# --- what is shared -----------------------------------------------------------------------------------------------------------------


def test_pool_shares_a_prefix_with_a_busy_slot_but_not_across_tenants(fast: LlamaModel) -> None:
    expected = text(answer(fast, start_command()))
    running = loop(fast)
    handle(running, start_command(9, parameters=changed(GREEDY, max_tokens=60, ignore_eos=True), salt="a"))
    running.step()
    reports = finish_besides(running, start_command(1, salt="a"), start_command(2, salt="b"), start_command(3))
    handle(running, CancelGeneration(9))
    assert [reports[identity][0].cached_tokens for identity in (1, 2, 3)] == [len(fast.prompt_tokens(start_command().messages)) - 1, 0, 0]
    assert [text(reports[identity]) for identity in (1, 2, 3)] == [expected] * 3


def finish_besides(running: EngineLoop, *commands: StartGeneration) -> dict[int, list[AnswerProgress]]:
    """Run until these are finished, whatever else is running."""
    for command in commands:
        handle(running, command)
    reports: dict[int, list[AnswerProgress]] = {command.id: [] for command in commands}
    while not all(one and one[-1].finish for one in reports.values()):
        step = running.step()
        assert step is not None
        for progress in step.progress:
            reports.get(progress.id, []).append(progress)
    return reports


# --- how a token is drawn -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("ignore_eos", [False, True])
def test_answer_follows_its_grammar_and_ends_with_it(fast: LlamaModel, temperature: float, ignore_eos: bool) -> None:
    parameters = changed(GREEDY, temperature=temperature, ignore_eos=ignore_eos, repeat_penalty=1.1)
    reports = answer(fast, start_command(parameters=parameters, grammar=YES_OR_NO))
    assert (text(reports) in ("yes", "no"), reports[-1].finish) == (True, FinishReason.STOP)


def test_grammar_without_a_possible_token_ends_the_answer(fast: LlamaModel) -> None:
    reports = answer(fast, start_command(grammar="root ::= [^\\x00-\\U0010FFFF]"))
    assert (text(reports), reports[-1].finish) == ("", FinishReason.STOP)


def test_grammar_continues_after_delivered_tokens(fast: LlamaModel) -> None:
    grammar = 'root ::= "one two three"'
    whole = tokens(answer(fast, start_command(grammar=grammar)))
    for split in (1, len(whole) - 1):
        assert tokens(answer(fast, start_command(grammar=grammar, delivered=whole[:split]))) == whole[split:]


@pytest.mark.parametrize("temperature", [1e-3, 1.0])
def test_top_tokens_are_sorted_with_their_probabilities(fast: LlamaModel, temperature: float) -> None:
    parameters = changed(GREEDY, temperature=temperature, top_logprobs=20, max_tokens=4)
    for progress in answer(fast, start_command(parameters=parameters)):
        (one,) = progress.logprobs
        chances = [chance.logprob for chance in one.top]
        assert len({chance.token_id for chance in one.top}) == 20
        assert chances == sorted(chances, reverse=True)
        assert all(chance <= 0 for chance in chances)
        assert 0.1 < sum(math.exp(chance) for chance in chances) <= 1 + 1e-6
        assert (one.drawn.token_id,) == progress.token_ids
        assert one.drawn.logprob <= chances[0]


def test_greedy_token_is_the_most_likely(fast: LlamaModel) -> None:
    for progress in answer(fast, start_command(parameters=changed(GREEDY, top_logprobs=1))):
        (one,) = progress.logprobs
        assert one.top == (one.drawn,)
        assert one.drawn.piece == fast.piece(one.drawn.token_id)


def test_log_probabilities_of_drawn_tokens_only(fast: LlamaModel) -> None:
    parameters = changed(WILD, top_logprobs=0, max_tokens=4)
    reports = answer(fast, start_command(parameters=parameters))
    assert [one.drawn.token_id for progress in reports for one in progress.logprobs] == list(tokens(reports))
    assert all(one.top == () for progress in reports for one in progress.logprobs)
    assert tokens(reports) == tokens(answer(fast, start_command(parameters=changed(parameters, top_logprobs=None))))


def test_bias_forces_or_bans_a_token(fast: LlamaModel) -> None:
    free = tokens(answer(fast, start_command()))
    forced = free[3]
    assert set(tokens(answer(fast, start_command(parameters=changed(GREEDY, logit_bias=((forced, 100.0),)))))) == {forced}
    banned = tuple((token, -100.0) for token in set(free))
    assert not set(tokens(answer(fast, start_command(parameters=changed(GREEDY, logit_bias=banned))))) & set(free)


def test_each_penalty_prevents_repetition(fast: LlamaModel) -> None:
    liked = tokens(answer(fast, start_command()))[1]
    parameters = changed(GREEDY, logit_bias=((liked, 8.0),))
    counts = [
        tokens(answer(fast, start_command(parameters=changed(parameters, **penalty)))).count(liked)
        for penalty in ({}, {"repeat_penalty": 2.0}, {"frequency_penalty": 2.0}, {"presence_penalty": 2.0})
    ]
    assert counts[0] > 1
    assert all(count < counts[0] for count in counts[1:])


def test_ignore_eos_continues_after_the_end_token(fast: LlamaModel) -> None:
    ends = [(token, 100.0) for token in sorted(fast._vocabulary.end_tokens)]  # to make it want nothing else
    wants_to_end = changed(GREEDY, logit_bias=tuple(ends))
    assert (tokens(ended := answer(fast, start_command(parameters=wants_to_end))), ended[-1].finish) == ((), FinishReason.STOP)
    goes_on = answer(fast, start_command(parameters=changed(wants_to_end, ignore_eos=True)))
    assert (len(tokens(goes_on)), goes_on[-1].finish) == (5, FinishReason.LENGTH)


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param(changed(WILD, top_k=0, min_p=0.0, max_tokens=2), id="nothing is cut off"),
        pytest.param(changed(WILD, top_k=1, max_tokens=2), id="only the likeliest"),
        pytest.param(changed(WILD, top_k=1_000_000, top_p=5e-324, min_p=1.0, max_tokens=2), id="as far as it goes"),
        pytest.param(changed(WILD, temperature=0.001, repeat_penalty=0.1, max_tokens=2), id="the least that there is"),
        pytest.param(changed(WILD, seed=2**63 - 1, max_tokens=2), id="the largest seed"),
        pytest.param(changed(WILD, max_tokens=2**63 - 1, stop=("e", " ", "a", "\n")), id="more tokens than 32 bits can say"),
    ],
)
def test_extreme_parameters_give_an_answer(fast: LlamaModel, parameters: Parameters) -> None:
    reports = answer(fast, start_command(parameters=parameters))
    assert reports[-1].finish is not None
    assert tokens(reports) == tokens(answer(fast, start_command(parameters=parameters)))


# --- what cannot be taken -----------------------------------------------------------------------------------------------------------


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
        pytest.param(start_command(grammar="root ::= ("), "format", id="half a grammar"),
        pytest.param(start_command(grammar="other ::= [a]"), "format", id="a grammar without its root"),
        pytest.param(start_command(question="word " * CONTEXT * SLOTS), "tokens", id="a prompt that is too long"),
    ],
)
def test_values_that_would_crash_llama_cpp_are_refused(fast: LlamaModel, command: StartGeneration, words: str) -> None:
    running = loop(fast)
    refused = handle(running, command)
    assert isinstance(refused, GenerationRefused)
    assert refused.problem.code == ("context_length_exceeded" if words == "tokens" else "bad_request")
    assert words in refused.problem.message
    assert running.idle


def test_raw_text_is_tokenized_as_is_and_continued(fast: LlamaModel) -> None:
    text = "Once upon a time, there was a little"
    raw = fast.prompt_tokens((ChatMessage("user", text),), raw=True)
    pieces = b"".join(fast.piece(token) or b"" for token in raw)
    assert pieces.decode() == text
    assert len(raw) < len(fast.prompt_tokens((ChatMessage("user", text),)))
    # Callers who write the whole prompt may write the template's own tokens: the chat and its text are then the same.
    chat = "<|im_start|>system\nAnswer.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    messages = (ChatMessage("system", "Answer."), ChatMessage("user", "Hi"))
    assert fast.prompt_tokens((ChatMessage("user", chat),), raw=True) == fast.prompt_tokens(messages)


def test_raw_command_reaches_the_model_as_raw(fast: LlamaModel) -> None:
    text = "Once upon a time, there was a little"
    reply = handle(loop(fast), StartGeneration(1, (ChatMessage("user", text),), GREEDY, raw=True))
    assert isinstance(reply, GenerationAccepted)
    assert reply.prompt_tokens == len(fast.prompt_tokens((ChatMessage("user", text),), raw=True))
