import pytest

from services.inference import jobs
from shared import errors
from shared.api.generation import ChatMessage, FormatKind, OutputFormat, Sampling, Tool
from shared.types import ModelName


def check(prompt: str | tuple[ChatMessage, ...], requested: Sampling = Sampling()) -> jobs.GenerationJob:  # noqa: B008 - frozen
    return jobs.check_prompt(ModelName("smollm2"), prompt, requested, context_tokens=None, draw_seed=lambda: 1)


def test_plain_prompt_is_a_chat_of_one_message() -> None:
    assert check("Say hello").messages == (ChatMessage("user", "Say hello"),)


def test_chat_stays_unchanged() -> None:
    chat = (ChatMessage("system", ""), ChatMessage("user", "hi"))
    assert check(chat).messages == chat


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        pytest.param("", "empty", id="an empty prompt"),
        pytest.param(" \n", "empty", id="nothing but space"),
        pytest.param((), "empty", id="no messages"),
        pytest.param((ChatMessage("user", ""),), "empty", id="an empty message"),
        pytest.param((ChatMessage("user", "a"), ChatMessage("wizard", "b")), r"messages\[1\].role", id="an unknown role"),
        pytest.param((ChatMessage("user", "a"),) * 1025, "1025 messages", id="too many messages"),
        pytest.param("x" * (1024 * 1024 + 1), "1048577 characters", id="too long to look at"),
    ],
)
def test_invalid_jobs_are_refused(prompt: str | tuple[ChatMessage, ...], words: str) -> None:
    with pytest.raises(errors.BadRequest, match=words) as refused:
        check(prompt)
    assert len(refused.value.message) < 200


def test_tools_work_with_a_json_format_but_not_with_a_grammar() -> None:
    assert check("x", Sampling(tools=(Tool("f"),), format=OutputFormat(FormatKind.JSON))).requested.format is not None
    with pytest.raises(errors.BadRequest, match="only JSON works together with tools"):
        check("x", Sampling(tools=(Tool("f"),), format=OutputFormat(FormatKind.GBNF, "root ::= [a]")))


def test_raw_text_is_one_message_without_tools() -> None:
    assert check("Once", Sampling(raw=True)).requested.raw
    with pytest.raises(errors.BadRequest, match="raw allows one message"):
        check((ChatMessage("system", "x"), ChatMessage("user", "y")), Sampling(raw=True))
    with pytest.raises(errors.BadRequest, match="raw and tools"):
        check("Once", Sampling(raw=True, tools=(Tool("f"),)))
