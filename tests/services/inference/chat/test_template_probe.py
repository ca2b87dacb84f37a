import pytest

from services.inference.chat import library, template_probe
from services.inference.chat.answer_text import AnswerMarks, AnswerSeparator, ParseReply, SeparatedPiece
from services.inference.chat.chat_messages import ChatRefused, OpenTemplate, ParseAnswer, RenderPrompt
from services.inference.chat.library import ChatLibrary, NotUnderstood
from tests.services.inference.chat import vendored
from tests.services.inference.chat.parsing import joined, read, run
from tests.services.inference.chat.test_library import TEMPLATE, TOOL, USER

pytestmark = pytest.mark.skipif(not library.PATH.exists(), reason="libaimesh_chat was not built: python -m tools.engine_libraries")

#: Why a rendered call can't be read back. Such templates need the generic form.
WITHOUT_CALLS = {
    "HuggingFaceTB-SmolLM3-3B": "renders no calls",
    "LFM2-8B-A1B": "renders no calls",
    "LFM2.5-Instruct": "renders no calls",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "renders no calls",
    "google-gemma-2-2b-it": "renders no calls",
    "ibm-granite-granite-3.3-2B-Instruct": "renders no calls",
    "llama-cpp-rwkv-world": "renders no calls",
    "microsoft-Phi-3.5-mini-instruct": "renders no calls",
    "Mistral-Small-3.2-24B-Instruct-2506": "writes an id between name and arguments, which the parser does not expect",
    "upstage-Solar-Open-100B": "writes an id before the name, which the parser does not expect",
}


def test_vendored_templates_read_their_own_calls_but_for_ten() -> None:
    chat, failed = vendored.library(), set()
    for path in vendored.sample():
        template = chat.open(vendored.request_of(path))
        assert "What is the weather?" in template.render(RenderPrompt((USER,), (TOOL,))).prompt, path.stem
        if not template_probe.reads_calls(chat, template):
            failed.add(path.stem)
    assert len(vendored.paths()) == 70
    assert failed == WITHOUT_CALLS.keys() & {path.stem for path in vendored.sample()}


def test_answers_of_vendored_templates_may_be_split_anywhere_and_resumed_at_every_16th_character() -> None:
    chat, function = vendored.library(), {"name": "weather", "arguments": '{"city": "K[ö]ln"}'}
    call: dict[str, object] = {"type": "function", "id": "123456789", "function": function}
    said: dict[str, object] = {"role": "assistant", "reasoning_content": "Hm [x].", "content": "Let me [see] it.", "tool_calls": [call]}
    with_call = 0
    for path in vendored.sample():
        template = chat.open(vendored.request_of(path))
        asked = template.render(RenderPrompt((USER,), (TOOL,)))
        answered = template.render(RenderPrompt((USER, said), (TOOL,), answer=False)).prompt
        marks, answer = AnswerMarks.of(asked), next(template_probe.cuts(asked, answered), answered[-400:])

        def parse(text: str, parser: str = asked.parser) -> ParseReply:
            try:
                return chat.parse(ParseAnswer(parser, text))
            except NotUnderstood as error:
                return ChatRefused(str(error))

        whole = read([answer], marks, parse)
        with_call += any(piece.name == "weather" for piece in whole)
        separator, before = AnswerSeparator(marks), list[SeparatedPiece]()
        for at, letter in enumerate(answer):
            if at and at % 16 == 0:
                assert joined([*before, *read([answer[at:]], marks, parse, delivered=answer[:at])]) == whole, (path.stem, at)
            before += run(separator.feed(letter), parse)
        assert joined([*before, *run(separator.feed("", last=True), parse)]) == whole, path.stem
    assert with_call >= 0.78 * len(vendored.sample())


def test_template_whose_calls_are_misread_fails() -> None:
    """The template writes arguments like no other model."""
    before, rest = TEMPLATE.split("{{- '<tool_call>")
    written = "{{- '[[' + call.function.name }}{% for key in call.function.arguments %}{{ ' ' + key + '~' }}{% endfor %}{{ ']]' }}"
    invented = "\n".join([before + written, *rest.splitlines()[1:]])
    chat = ChatLibrary()
    assert template_probe.reads_calls(chat, chat.open(OpenTemplate(TEMPLATE)))
    assert not template_probe.reads_calls(chat, chat.open(OpenTemplate(invented)))
