"""A conversation of `aicli chat`: its turns, its settings, and the request that continues it. Pure."""

from collections.abc import Sequence
from typing import Any

import msgspec

from shared import errors
from shared.api.gateway import InferenceRequest
from shared.api.generation import (
    MAX_MESSAGES,
    MAX_PROMPT_BYTES,
    ChatMessage,
    ImagePart,
    MaxTokens,
    MinP,
    Penalty,
    ReasoningEffort,
    RepeatPenalty,
    Seed,
    Temperature,
    TopK,
    TopP,
)
from shared.protocol import field_errors
from shared.types import ModelName

#: A turn is two messages; the first one may be for the system.
MAX_TURNS = (MAX_MESSAGES - 1) // 2
#: Of one question, so that there is room for others.
MAX_QUESTION_BYTES = 256 * 1024
#: Of all images; a request has at most 17 MiB. The gateway's own limit may be lower.
MAX_IMAGE_BYTES = 15 * 1024 * 1024
#: Means "back to the default" where a text or a number is expected.
UNSET = "-"


class ChatSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """The parameters of /set. None is the model's default."""

    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    seed: Seed | None = None
    repeat_penalty: RepeatPenalty | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    reasoning_effort: ReasoningEffort | None = None

    def chosen(self) -> dict[str, float | str]:
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}

    def with_setting(self, name: str, text: str) -> "ChatSettings":
        """Raises BadRequest for an unknown name or an invalid value."""
        if name not in self.__struct_fields__:
            raise errors.BadRequest(f"there is no setting {name!r}", hint=f"settings: {', '.join(self.__struct_fields__)}")
        values: dict[str, Any] = {**self.chosen(), name: None if text == UNSET else text}
        try:
            return msgspec.convert(values, ChatSettings, strict=False)
        except msgspec.ValidationError as error:
            raise errors.BadRequest(f"{field_errors.sentence(error, ChatSettings)}, or {UNSET} for the default") from error


class ConversationTurn(msgspec.Struct, frozen=True):
    question: str
    #: Empty until the answer arrives. A question without an answer is not sent with later ones.
    answer: str = ""
    #: What the model thought before it; its template decides how much of that it reads again.
    reasoning: str = ""
    #: Shown before the question; their data.
    images: tuple[bytes, ...] = ()


class ChatConversation(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    model: str | None = None
    system: str | None = None
    settings: ChatSettings = ChatSettings()
    turns: tuple[ConversationTurn, ...] = ()

    @property
    def last_answer(self) -> str:
        return next((turn.answer for turn in reversed(self.turns) if turn.answer), "")

    def with_question(self, text: str, images: Sequence[bytes] = ()) -> "ChatConversation":
        """Raises TooLarge if the conversation would be longer than a request may be."""
        if len(text.encode()) > MAX_QUESTION_BYTES:
            raise errors.TooLarge(f"the message is longer than {MAX_QUESTION_BYTES // 1024} KiB", hint="shorten or split it")
        turns = (*(turn for turn in self.turns if turn.answer), ConversationTurn(text, images=tuple(images)))
        size = sum(len((turn.question + turn.reasoning + turn.answer).encode()) for turn in turns) + len((self.system or "").encode())
        if size > MAX_PROMPT_BYTES or len(turns) > MAX_TURNS:
            raise errors.TooLarge("the conversation is too long to be continued", hint="start a new one with /new")
        if sum(len(image) for turn in turns for image in turn.images) > MAX_IMAGE_BYTES:
            raise errors.TooLarge(
                f"the images of the conversation have more than {MAX_IMAGE_BYTES >> 20} MiB",
                hint="start a new one with /new, or send smaller ones",
            )
        return msgspec.structs.replace(self, turns=turns)

    def with_answer(self, text: str, reasoning: str = "") -> "ChatConversation":
        """Answer the last question."""
        *before, last = self.turns
        return msgspec.structs.replace(self, turns=(*before, msgspec.structs.replace(last, answer=text, reasoning=reasoning)))

    def without_last_answer(self) -> "ChatConversation":
        """Raises BadRequest if nothing was asked yet."""
        if not self.turns:
            raise errors.BadRequest("there is no answer to retry yet")
        return self.with_answer("")

    def request(self) -> InferenceRequest:
        """Return the request that answers the last question."""
        messages = [ChatMessage("system", self.system)] if self.system else []
        for turn in self.turns:
            messages.append(ChatMessage("user", turn.question, images=tuple(map(ImagePart, turn.images))))
            if turn.answer:
                messages.append(ChatMessage("assistant", turn.answer, reasoning=turn.reasoning))
        chosen: dict[str, Any] = self.settings.chosen()
        return InferenceRequest(messages=tuple(messages), model=None if self.model is None else ModelName(self.model), **chosen)
