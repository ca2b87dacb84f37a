import pytest

from services.inference.engine.loop import Loop
from services.inference.engine.sampling import Parameters
from services.inference.engine.wire import Accepted, Cancel, Generate, Progress, Refused
from shared import errors
from shared.api.generation import ChatMessage
from shared.types import FinishReason
from tests.services.inference.standins import ByteModel


def generate(identity: int, prompt: str, *, temperature: float = 0, seed: int = 1, max_tokens: int | None = None) -> Generate:
    parameters = Parameters(temperature=temperature, top_p=1, top_k=0, seed=seed, max_tokens=max_tokens)
    return Generate(identity, (ChatMessage("user", prompt),), parameters)


def loop(model: ByteModel, slots: int = 4, chunk_tokens: int = 8) -> Loop:
    return Loop(model, slots=slots, chunk_tokens=chunk_tokens)


def finish(running: Loop) -> dict[int, list[Progress]]:
    """Run until there is nothing left to do."""
    reports: dict[int, list[Progress]] = {}
    for _ in range(1000):
        if running.idle:
            break
        step = running.step()
        for progress in step.progress if step else ():
            reports.setdefault(progress.id, []).append(progress)
    assert running.idle
    return reports


def text(reports: list[Progress]) -> str:
    return "".join(progress.text for progress in reports)


def test_an_answer_comes_token_by_token_and_ends_once() -> None:
    running = loop(ByteModel())
    assert running.handle(generate(1, "häl")) == Accepted(1, 4)
    reports = finish(running)[1]
    assert [(progress.token_ids, progress.text, progress.finish) for progress in reports] == [
        ((ord("h"),), "h", None),
        ((0xC3,), "", None),
        ((0xA4,), "ä", None),
        ((ord("l"),), "l", None),
        ((), "", FinishReason.STOP),
    ]


def test_all_answers_of_a_step_are_in_one_report() -> None:
    running = loop(ByteModel())
    for identity in (1, 2, 3):
        running.handle(generate(identity, "abcdef"))
    steps = [step for step in (running.step() for _ in range(12)) if step]
    assert {1, 2, 3} in [{progress.id for progress in step.progress} for step in steps]


def test_the_same_seed_says_the_same_alone_and_in_company() -> None:
    alone = loop(ByteModel())
    alone.handle(generate(1, "once upon a time", temperature=1, seed=7))
    expected = text(finish(alone)[1])
    crowd = loop(ByteModel(), slots=3)
    for identity in range(2, 8):
        crowd.handle(generate(identity, "x" * identity * 4, temperature=1, seed=identity))
    crowd.handle(generate(1, "once upon a time", temperature=1, seed=7))
    assert text(finish(crowd)[1]) == expected


def test_a_prompt_that_does_not_fit_is_refused_at_once_and_others_go_on() -> None:
    running = loop(ByteModel(context_tokens=16))
    running.handle(generate(1, "abc"))
    refused = running.handle(generate(2, "x" * 16))
    assert isinstance(refused, Refused)
    assert refused.problem.code == "bad_request"
    assert "16" in refused.problem.message
    assert text(finish(running)[1]) == "abc"


def test_a_prompt_that_the_template_refuses_is_refused() -> None:
    refused = loop(ByteModel()).handle(generate(2, "refuse"))
    assert isinstance(refused, Refused)


def test_the_context_is_used_to_its_last_token() -> None:
    running = loop(ByteModel(context_tokens=10))
    running.handle(generate(1, "abcdef"))
    reports = finish(running)[1]
    assert text(reports) == "abcd"
    assert reports[-1].finish is FinishReason.LENGTH


def test_cancel_frees_the_slot_before_the_next_step() -> None:
    model = ByteModel()
    running = loop(model, slots=1)
    running.handle(generate(1, "abcdefgh"))
    running.handle(generate(2, "xy"))
    running.step()
    assert running.handle(Cancel(1)) is None
    assert model.memory == {}
    assert set(finish(running)) == {2}


def test_a_finished_sequence_leaves_nothing_behind() -> None:
    model = ByteModel()
    running = loop(model)
    running.handle(generate(1, "abc", max_tokens=1))
    finish(running)
    assert model.memory == {}


def test_a_failed_decode_ends_the_process() -> None:
    running = loop(ByteModel(crash=True))
    running.handle(generate(1, "abc"))
    with pytest.raises(errors.ModelCrashed):
        running.step()
