import pytest

from services.inference import jobs
from shared import errors
from shared.api.generation import ChatMessage, FormatKind, ImagePart, OutputFormat, Sampling, Tool
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


SYSTEM, USER, SAID = ChatMessage("system", "S"), ChatMessage("user", "U"), ChatMessage("assistant", "A")


@pytest.mark.parametrize(
    ("messages", "given"),
    [
        pytest.param((), (), id="no messages"),
        pytest.param((SYSTEM, USER, USER, SAID), (SYSTEM, USER, USER, SAID), id="nothing later"),
        pytest.param((SYSTEM, SYSTEM, USER), (ChatMessage("system", "S\n\nS"), USER), id="two at the beginning are one"),
        pytest.param((USER, SYSTEM, SYSTEM, SAID), (ChatMessage("user", "U\n\nS\n\nS"), SAID), id="behind a question"),
        pytest.param((USER, SAID, SYSTEM, USER, USER), (USER, SAID, ChatMessage("user", "S\n\nU"), USER), id="before a question"),
        pytest.param((USER, SAID, SYSTEM), (USER, SAID, ChatMessage("user", "S")), id="at the end"),
    ],
)
def test_later_instructions_become_the_users(messages: tuple[ChatMessage, ...], given: tuple[ChatMessage, ...]) -> None:
    assert jobs.with_instructions_of_user(messages) == given


def test_joined_messages_keep_the_places_of_their_images() -> None:
    one, two = (
        ChatMessage("user", "ab", images=(ImagePart(b"1", 1),)),
        ChatMessage("user", "cd", images=(ImagePart(b"2", 0), ImagePart(b"3", 2))),
    )
    [joined] = jobs.with_instructions_of_user((one, SYSTEM, two))
    assert joined == ChatMessage("user", "ab\n\nS\n\ncd", images=(ImagePart(b"1", 1), ImagePart(b"2", 7), ImagePart(b"3", 9)))
