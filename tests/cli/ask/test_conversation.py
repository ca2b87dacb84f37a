"""Conversations: what is sent, what is refused, and that files of any content can be read again."""

import msgspec
import pytest

from cli.ask import conversation
from cli.ask.conversation import MAX_IMAGE_BYTES, ChatConversation, ChatSettings, ConversationTurn
from shared import errors
from shared.api.generation import ChatMessage
from shared.types import ModelName


def test_request_has_the_system_prompt_the_turns_and_the_settings() -> None:
    chat = ChatConversation(model="m", system="Be brief", settings=ChatSettings(temperature=0.5)).with_question("one").with_answer("1")
    request = chat.with_question("two").request()
    assert request.messages == (
        ChatMessage("system", "Be brief"),
        ChatMessage("user", "one"),
        ChatMessage("assistant", "1"),
        ChatMessage("user", "two"),
    )
    assert (request.model, request.temperature, request.max_tokens) == (ModelName("m"), 0.5, None)


def test_images_are_sent_before_their_question_and_bounded() -> None:
    asked = ChatConversation().with_question("what?", (b"cat",)).with_answer("a cat")
    first, _, last = asked.with_question("and?", (b"dog",)).request().messages
    assert [[image.data for image in message.images] for message in (first, last)] == [[b"cat"], [b"dog"]]
    with pytest.raises(errors.TooLarge, match="the images of the conversation have more than 15 MiB"):
        asked.with_question("and?", (bytes(MAX_IMAGE_BYTES - 2),))


def test_question_without_an_answer_is_not_sent_with_the_next_one() -> None:
    chat = ChatConversation().with_question("failed").with_question("again")
    assert chat.turns == (ConversationTurn("again"),)


def test_retry_asks_the_last_question_again() -> None:
    chat = ChatConversation().with_question("one").with_answer("1")
    assert chat.without_last_answer().request().messages == (ChatMessage("user", "one"),)
    with pytest.raises(errors.BadRequest, match="no answer to retry"):
        ChatConversation().without_last_answer()


def test_last_answer_is_that_of_the_last_answered_question() -> None:
    assert ChatConversation().last_answer == ""
    assert ChatConversation().with_question("one").with_answer("1").with_question("two").last_answer == "1"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("temperature", "0.2", 0.2), ("temperature", "1", 1.0), ("max_tokens", "7", 7), ("seed", "0", 0), ("presence_penalty", "-2", -2.0)],
)
def test_settings_are_parsed(name: str, text: str, value: float) -> None:
    changed = ChatSettings().with_setting(name, text)
    assert changed.chosen() == {name: value}
    assert changed.with_setting(name, "-") == ChatSettings()


@pytest.mark.parametrize("text", ["hot", "3", "-1", "nan", "inf", "", "0.5 1", "1e400", "true", "٣"])
def test_invalid_setting_is_refused_with_its_range(text: str) -> None:
    with pytest.raises(errors.BadRequest, match="temperature must be a number from 0 to 2, or - for the default"):
        ChatSettings().with_setting("temperature", text)


def test_unknown_setting_lists_the_settings() -> None:
    with pytest.raises(errors.BadRequest, match="no setting 'temprature'") as refused:
        ChatSettings().with_setting("temprature", "1")
    assert "temperature" in refused.value.hint


def test_every_setting_reaches_the_request() -> None:
    settings = ChatSettings(**dict.fromkeys(ChatSettings.__struct_fields__, 1))
    request = ChatConversation(settings=settings).with_question("one").request()
    assert {name: getattr(request, name) for name in ChatSettings.__struct_fields__} == settings.chosen()


def test_conversation_is_bounded() -> None:
    with pytest.raises(errors.TooLarge, match="message is longer than 256 KiB"):
        ChatConversation().with_question("x" * (conversation.MAX_QUESTION_BYTES + 1))
    long = ConversationTurn("x" * conversation.MAX_QUESTION_BYTES, "y")
    with pytest.raises(errors.TooLarge, match="too long to be continued") as refused:
        ChatConversation(turns=(long,) * 16).with_question("one")
    assert "/new" in refused.value.hint
    with pytest.raises(errors.TooLarge, match="too long to be continued"):
        ChatConversation(turns=(ConversationTurn("q", "a"),) * conversation.MAX_TURNS).with_question("one")


def test_conversation_survives_its_file() -> None:
    turns = (ConversationTurn("one\n", "1 \x1b"), ConversationTurn("two"))
    chat = ChatConversation(model="m", system="s", settings=ChatSettings(seed=3), turns=turns)
    assert msgspec.json.decode(msgspec.json.encode(chat), type=ChatConversation) == chat
    assert msgspec.json.decode(b"{}", type=ChatConversation) == ChatConversation()
