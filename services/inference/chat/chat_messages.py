"""What a worker asks `libaimesh_chat` and what it answers, in the library's JSON and on the socket of the chat process."""

from collections.abc import Mapping

import msgspec

from services.inference.images.prompt_images import DecodedImage
from shared.api.generation import ToolChoice

#: A message or a tool in OpenAI's form.
Row = dict[str, object]


class _Tagged(msgspec.Struct, frozen=True, tag=True):
    pass


# --- worker to chat process -------------------------------------------------------------------------------------------


class OpenTemplate(_Tagged, frozen=True):
    """The first request. Answered with TemplateCapabilities."""

    #: Empty for a model without one, which only takes plain prompts.
    template: str
    bos: str = ""
    eos: str = ""
    #: Spellings that only the template may use (`special_tokens`).
    special: tuple[str, ...] = ()
    #: Without llama.cpp, which crashes on the template.
    by_jinja: bool = False


class RenderPrompt(_Tagged, frozen=True):
    """Answered with RenderedPrompt."""

    #: With the places of ``images`` in the content. For a named tool, only that tool and ToolChoice.REQUIRED.
    messages: tuple[Row, ...]
    tools: tuple[Row, ...] = ()
    choice: ToolChoice = ToolChoice.AUTO
    parallel: bool = True
    thinking: bool = True
    #: The prompt ends where the answer begins; False for messages alone.
    answer: bool = True
    #: Variables of the template (``chat_template_kwargs``).
    variables: Mapping[str, object] = {}
    #: Seconds since 1970, for templates that write the date; 0 for the clock.
    now: int = 0
    #: Keep the marks in callers' texts.
    marked: bool = True


class ParseAnswer(_Tagged, frozen=True):
    """Answered with ParsedAnswer."""

    #: RenderedPrompt.parser.
    parser: str
    #: All of the answer so far, or the whole answer.
    text: str


class DecodeImage(_Tagged, frozen=True):
    """Answered with DecodedImage."""

    data: bytes
    #: Larger images are shrunk to it.
    long_side: int


ChatRequest = OpenTemplate | RenderPrompt | ParseAnswer | DecodeImage


# --- chat process to worker -------------------------------------------------------------------------------------------


class TemplateCapabilities(_Tagged, frozen=True):
    supports_reasoning_effort: bool
    #: It shows thoughts apart from answers.
    supports_thinking: bool = False
    #: A call that the template wrote was read back (`template_probe`). Else tools need the generic form.
    reads_calls: bool = False
    #: Special tokens whose text belongs to answers.
    shown: tuple[str, ...] = ()
    #: It shows messages of the system where they are, also behind the first one.
    late_system: bool = False
    #: Why the process isn't confined; empty if it is.
    unconfined: str = ""


class Trigger(msgspec.Struct, frozen=True):
    """What starts the grammar of a tool call."""

    #: token, word, pattern or pattern_full.
    kind: str
    value: str


class RenderedPrompt(_Tagged, frozen=True):
    prompt: str
    #: The end of the prompt that begins the answer.
    generation_prompt: str = ""
    #: What begins a call.
    triggers: tuple[Trigger, ...] = ()
    thinking_start: str = ""
    thinking_ends: tuple[str, ...] = ()
    #: Special tokens whose text belongs to the answer.
    preserved: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    #: Opaque, for ParseAnswer. Empty if all of the answer is content.
    parser: str = ""
    #: Tools are in the generic form, whose grammar isn't here.
    generic: bool = False


class ParsedCall(msgspec.Struct, frozen=True):
    name: str
    #: JSON; a part of it while the call is being written.
    arguments: str
    #: Empty if the model wrote none.
    id: str = ""


class FittedModel(msgspec.Struct, frozen=True):
    """How llama.cpp divides a model."""

    fits: bool
    gpu_layers: int
    tensor_split: tuple[float, ...]
    #: As in LoadCommand.
    override_tensor: tuple[str, ...]


class ParsedAnswer(_Tagged, frozen=True):
    reasoning: str = ""
    content: str = ""
    calls: tuple[ParsedCall, ...] = ()
    #: Where the last thoughts or content end in the text, without the spaces behind them.
    end: int = 0


class ChatRefused(_Tagged, frozen=True):
    """llama.cpp can't do it: a template that it can't render, or an answer that it doesn't understand."""

    reason: str


ChatReply = TemplateCapabilities | RenderedPrompt | ParsedAnswer | DecodedImage | ChatRefused

request_decoder: msgspec.msgpack.Decoder[ChatRequest] = msgspec.msgpack.Decoder(ChatRequest)
reply_decoder: msgspec.msgpack.Decoder[ChatReply] = msgspec.msgpack.Decoder(ChatReply)
