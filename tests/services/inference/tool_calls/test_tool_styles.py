import itertools
import json
from collections.abc import Iterable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.inference.engine.prompt import ChatTemplate
from services.inference.tool_calls import call_json
from services.inference.tool_calls.tool_call_parser import ParsedText, ToolCallParser
from services.inference.tool_calls.tool_format import ToolStyle
from shared.api.generation import ChatMessage, Tool, ToolCall
from tests.services.inference.engine import tool_style_templates

F = Tool("f", "", '{"type": "object", "properties": {"t": {"type": "string"}, "n": {"type": "integer"}, "l": {"type": "array"}}}')
G = Tool("g")
TOOLS = (F, G)

CODER = "<tool_call>\n<function=f>\n<parameter=t>\n5\n</parameter>\n<parameter=n>\n5\n</parameter>\n</function>\n</tool_call>"
GLM = "<tool_call>f\n<arg_key>t</arg_key>\n<arg_value>5</arg_value>\n<arg_key>n</arg_key>\n<arg_value>5</arg_value>\n</tool_call>"
MISTRAL = '[TOOL_CALLS]f[ARGS]{"n": 5}'
LIST, LIST_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
ITEM = '<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"n": 5}<｜tool▁call▁end｜>'
FENCED = '<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"n": 5}\n```<｜tool▁call▁end｜>'
THOUGHT = "<|channel|>analysis<|message|>Let me see.<|end|>"
FINAL = "<|channel|>final<|message|>"
COMMENTARY = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"n": 5}'
RECIPIENT = ' to=functions.f<|channel|>commentary json<|message|>{"n": 5}'
START = "<|start|>assistant"

N = ("f", '{"n": 5}')
TN = ("f", '{"t": "5", "n": 5}')


def parsed(style: str, pieces: Iterable[str]) -> ParsedText:
    """All that came out of one answer."""
    numbers = itertools.count()
    parser = ToolCallParser(ToolStyle(style), TOOLS, lambda: f"call_{next(numbers)}")
    parts = [parser.push(piece) for piece in pieces]
    parts.append(parser.finish())
    return ParsedText("".join(part.text for part in parts), tuple(call for part in parts for call in part.calls))


def called(*calls: tuple[str, str], text: str = "") -> ParsedText:
    return ParsedText(text, tuple(ToolCall(f"call_{number}", *call) for number, call in enumerate(calls)))


def json_call(name: str) -> str:
    return f'{{"name": "{name}", "arguments": {{"n": 5}}}}'


CASES = [
    # Qwen3-Coder
    pytest.param("function_tags", CODER, called(TN), id="coder: one call"),
    pytest.param("function_tags", f"I look.\n{CODER}\n{CODER}\n", called(TN, TN, text="I look."), id="coder: a text and two calls"),
    pytest.param("function_tags", CODER.removeprefix("<tool_call>\n"), called(TN), id="coder: the outer tag is left out"),
    pytest.param("function_tags", CODER.removesuffix("\n</tool_call>"), called(TN), id="coder: the outer tag is left open"),
    pytest.param("function_tags", "<tool_call><function=g></function></tool_call>", called(("g", "{}")), id="coder: no parameters"),
    pytest.param(
        "function_tags",
        "<function=f><parameter=t>\n\n a <b>\n</function>\n\n</parameter></function>",
        called(("f", json.dumps({"t": "\n a <b>\n</function>\n"}))),
        id="coder: a text with breaks and tags",
    ),
    pytest.param("function_tags", f"<tool_call>\n{json_call('f')}\n</tool_call>", called(N), id="coder: a call in JSON"),
    pytest.param("function_tags", CODER.replace("=f>", "=h>"), called(text=CODER.replace("=f>", "=h>")), id="coder: nobody offered it"),
    pytest.param("function_tags", CODER[:-40], called(text=CODER[:-40]), id="coder: half a call"),
    pytest.param("function_tags", f"<tool_call><tool_call>{CODER}", called(TN, text="<tool_call><tool_call>"), id="coder: lone tags"),
    pytest.param(
        "function_tags", f"<function=f><function={CODER}", called(TN, text="<function=f><function=<tool_call>"), id="coder: half calls"
    ),
    pytest.param(
        "function_tags", f"<function={'x' * 200}>{CODER}", called(TN, text=f"<function={'x' * 200}>"), id="coder: no name is so long"
    ),
    # GLM
    pytest.param("key_tags", GLM, called(TN), id="glm: one call"),
    pytest.param("key_tags", GLM.replace("\n", ""), called(TN), id="glm: without breaks"),
    pytest.param("key_tags", f"Well.\n{GLM}\n{GLM}", called(TN, TN, text="Well."), id="glm: a text and two calls"),
    pytest.param("key_tags", "<tool_call>g\n</tool_call>", called(("g", "{}")), id="glm: no arguments"),
    pytest.param("key_tags", f"<tool_call>\n{json_call('f')}\n</tool_call>", called(N), id="glm: a call in JSON"),
    pytest.param("key_tags", GLM.replace(">f", ">h"), called(text=GLM.replace(">f", ">h")), id="glm: nobody offered it"),
    pytest.param("key_tags", GLM[:-12], called(text=GLM[:-12]), id="glm: half a call"),
    pytest.param(
        "key_tags",
        "<tool_call>f<arg_key>t</arg_key>5</tool_call>",
        called(text="<tool_call>f<arg_key>t</arg_key>5</tool_call>"),
        id="glm: a value without its tag",
    ),
    pytest.param("key_tags", f"<tool_call>f g{GLM}", called(TN, text="<tool_call>f g"), id="glm: a call behind a broken one"),
    # Mistral
    *(
        pytest.param(style, answer, result, id=f"{style}: {name}")
        for style in ("mistral_named", "mistral")
        for name, answer, result in (
            ("one call", MISTRAL, called(N)),
            ("two calls", f"Yes. {MISTRAL}{MISTRAL}", called(N, N, text="Yes.")),
            ("with an id", MISTRAL.replace("[ARGS]", "[CALL_ID]abcdefghi[ARGS]"), called(N)),
            ("the older list", f"[TOOL_CALLS][{json_call('f')}]", called(N)),
            ("nobody offered it", "[TOOL_CALLS]h[ARGS]{}", called(text="[TOOL_CALLS]h[ARGS]{}")),
            ("no object", "[TOOL_CALLS]f[ARGS][1]", called(text="[TOOL_CALLS]f[ARGS][1]")),
            ("no arguments", "[TOOL_CALLS]f, then", called(text="[TOOL_CALLS]f, then")),
        )
    ),
    # DeepSeek
    *(
        pytest.param(style, answer, result, id=f"{style}: {name}")
        for style, item in (("deepseek", ITEM), ("deepseek_fenced", FENCED), ("deepseek", FENCED), ("deepseek_fenced", ITEM))
        for name, answer, result in (
            ("one call", f"{LIST}{item}{LIST_END}", called(N)),
            ("two calls", f"Yes.\n{LIST}{item}\n{item}{LIST_END}", called(N, N, text="Yes.")),
            ("the list is left open", f"{LIST}{item}", called(N)),
            ("the list is left out", item, called(N)),
            ("the answer ends behind the JSON", f"{LIST}{item[: item.index('}') + 1]}", called(N)),
            ("a call in JSON", f"{LIST}<｜tool▁call▁begin｜>{json_call('f')}<｜tool▁call▁end｜>{LIST_END}", called(N)),
            ("nobody offered it", item.replace("f", "h"), called(text=item.replace("f", "h"))),
            ("half a call", f"{LIST}{item[:-30]}", called(text=f"{LIST}{item[:-30]}") if "}" not in item[:-30] else called(N)),
            ("a text behind", f"{LIST}{item}{LIST_END} Done.", called(N, text=" Done.")),
        )
    ),
    # gpt-oss
    pytest.param("harmony", f"{FINAL}Hello there", called(text="Hello there"), id="harmony: an answer"),
    pytest.param("harmony", f"{THOUGHT}{START}{FINAL}Hello<|end|>", called(text="Hello"), id="harmony: a thought is not shown"),
    pytest.param("harmony", THOUGHT[:-10], called(), id="harmony: nothing but half a thought"),
    pytest.param("harmony", f"{THOUGHT}{START}{COMMENTARY}", called(N), id="harmony: a call behind a thought"),
    pytest.param("harmony", RECIPIENT, called(N), id="harmony: a call at once"),
    pytest.param("harmony", f"{RECIPIENT}<|call|>", called(N), id="harmony: a call with its end"),
    pytest.param("harmony", f"{THOUGHT}{START}{RECIPIENT}", called(N), id="harmony: the recipient stands first"),
    pytest.param("harmony", COMMENTARY.replace(" <|constrain|>json", ""), called(N), id="harmony: without a kind"),
    pytest.param("harmony", COMMENTARY.replace(" <|con", "<|con"), called(N), id="harmony: without a blank"),
    pytest.param("harmony", COMMENTARY.replace("commentary", "analysis"), called(N), id="harmony: in another channel"),
    pytest.param(
        "harmony",
        f"<|channel|>commentary<|message|>I look.<|end|>{START}{COMMENTARY}<|end|>{START}{COMMENTARY}",
        called(N, N, text="I look."),
        id="harmony: a word before, and two calls",
    ),
    pytest.param(
        "harmony",
        f"<|channel|>commentary to=functions <|constrain|>json<|message|>{json_call('f')}",
        called(N),
        id="harmony: a call in JSON",
    ),
    pytest.param("harmony", COMMENTARY.replace(".f", ".h"), called(text=COMMENTARY.replace(".f", ".h")), id="harmony: nobody offered it"),
    pytest.param("harmony", COMMENTARY[:-3], called(text=COMMENTARY[:-3]), id="harmony: half a call"),
    pytest.param("harmony", "to be <|end|> or not", called(text="to be <|end|> or not"), id="harmony: a text without a channel"),
    pytest.param("harmony", f"{THOUGHT}Hello", called(text="Hello"), id="harmony: a text behind a thought"),
    pytest.param("harmony", f"{COMMENTARY}<|end|><|end|>", called(N, text="<|end|>"), id="harmony: one end too many"),
    pytest.param("harmony", f"{START} hello", called(text=f"{START} hello"), id="harmony: no header"),
    pytest.param("harmony", "<|channel|>a" * 20, called(text="<|channel|>a" * 20), id="harmony: too much of a header"),
    pytest.param("harmony", '{"a": 1}', called(text='{"a": 1}'), id="harmony: JSON that a format asked for"),
]


@pytest.mark.parametrize(("style", "answer", "result"), CASES)
def test_answer_split_anywhere(style: str, answer: str, result: ParsedText) -> None:
    assert parsed(style, [answer]) == parsed(style, answer) == result
    for cut in range(len(answer)):
        assert parsed(style, [answer[:cut], answer[cut:]]) == result


@pytest.mark.parametrize(
    ("style", "pieces", "shown"),
    [
        pytest.param("function_tags", ["a <", "function", " x"], ["a", "", " <function x"], id="coder: what may be a tag waits"),
        pytest.param("function_tags", ["<function=h", ">", "x"], ["", "<function=h>", "x"], id="coder: an unknown name goes on at once"),
        pytest.param("key_tags", ["<tool_call>", "h", "\n", "x"], ["", "", "<tool_call>h", "\nx"], id="glm: so does this one"),
        pytest.param("key_tags", ["<tool_call>", "x" * 129], ["", "<tool_call>" + "x" * 129], id="glm: no name is so long"),
        pytest.param("harmony", ["<|channel|>", "final", "<|message|>", "He", "llo"], ["", "", "", "He", "llo"], id="harmony: an answer"),
        pytest.param("harmony", ["He", "llo"], ["He", "llo"], id="harmony: a text without a channel"),
    ],
)
def test_text_that_cannot_be_a_call_is_not_held_back(style: str, pieces: list[str], shown: list[str]) -> None:
    parser = ToolCallParser(ToolStyle(style), (F,), lambda: "i")
    assert [parser.push(piece).text for piece in pieces] == shown


@pytest.mark.parametrize("style", ToolStyle)
@pytest.mark.parametrize(
    "long",
    [" " * 64 + "<function=f><parameter=t>", "<tool_call>f<arg_key>t</arg_key><arg_value>", '[TOOL_CALLS]f[ARGS]{"', COMMENTARY[:-5]],
)
def test_endless_call_becomes_text_in_time(style: ToolStyle, long: str) -> None:
    sent = long + "x" * 2 * call_json.MAX_HELD_CHARACTERS
    parser = ToolCallParser(style, (F,), lambda: "i")
    shown = ""
    for first, last in itertools.pairwise([0, len(long), call_json.MAX_HELD_CHARACTERS + 1, len(sent)]):
        shown += parser.push(sent[first:last]).text
        assert last - len(shown) <= call_json.MAX_HELD_CHARACTERS
    assert shown + parser.finish().text == sent


@pytest.mark.parametrize("style", ToolStyle)
@pytest.mark.parametrize(
    "part",
    [
        *("<function=f><parameter=t>", "<function=", "<tool_call>f<arg_key>", "<tool_call>f<arg_key>t</arg_key><arg_value>"),
        *("[TOOL_CALLS]f[CALL_ID]", LIST, "<｜tool▁call▁begin｜>f<｜tool▁sep｜>", "<|channel|>", START, "<|end|>", "<|start|>"),
    ],
)
def test_hostile_answers_are_text(style: ToolStyle, part: str) -> None:
    """Each would take minutes if any part of it were scanned again and again."""
    text = part * (70_000 // len(part))
    assert parsed(style, [text]) == ParsedText(text)
    few = text[:3_000]
    assert parsed(style, [few[at : at + 3] for at in range(0, len(few), 3)]) == ParsedText(few)


#: No header of a message: with one of these as well, what is not shown may be a thought.
MARKS = (
    *("<tool_call>", "</tool_call>", "<function=f>", "<function=", "</function>", "<parameter=t>", "</parameter>", CODER, GLM),
    *("f", "<arg_key>", "t</arg_key>", "<arg_value>", "</arg_value>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", MISTRAL, LIST, LIST_END),
    *("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "```json", "```", "<｜tool▁call▁end｜>", ITEM, FENCED, "{}", json_call("f"), "\n", "  "),
    *("<|start|>", "assistant", "<|channel|>", "analysis", "final", "commentary", " to=functions.f", "<|constrain|>json", COMMENTARY),
)
answers = st.lists(st.sampled_from(MARKS) | st.text(max_size=3), max_size=12).map("".join)
messages = st.lists(st.sampled_from((*MARKS, "<|message|>", "<|end|>", THOUGHT, f"{START}{FINAL}", RECIPIENT)), max_size=12).map("".join)


@given(st.sampled_from(ToolStyle), answers | messages, st.data())
def test_split_makes_no_difference(style: ToolStyle, answer: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=6)))
    pieces = [answer[first:last] for first, last in itertools.pairwise([0, *cuts, len(answer)])]
    assert parsed(style, pieces) == parsed(style, [answer]) == parsed(style, answer)


@given(st.sampled_from(ToolStyle), answers)
def test_text_without_calls_keeps_every_character(style: ToolStyle, answer: str) -> None:
    found = parsed(style, [answer])
    assert found.calls or found.text == answer


TEMPLATES = {
    "FUNCTION_TAGS": ToolStyle.FUNCTION_TAGS,
    "KEY_TAGS": ToolStyle.KEY_TAGS,
    "KEY_TAGS_TIGHT": ToolStyle.KEY_TAGS,
    "MISTRAL_NAMED": ToolStyle.MISTRAL_NAMED,
    "MISTRAL_WITH_ID": ToolStyle.MISTRAL_NAMED,
    "DEEPSEEK_FENCED": ToolStyle.DEEPSEEK_FENCED,
    "DEEPSEEK": ToolStyle.DEEPSEEK,
    "HARMONY": ToolStyle.HARMONY,
}


@pytest.mark.parametrize("family", TEMPLATES)
@given(text=st.text(), number=st.integers(), items=st.lists(st.text() | st.none() | st.booleans()))
def test_call_rendered_by_a_template_is_read_back(family: str, text: str, number: int, items: list[object]) -> None:
    arguments = {"t": text, "n": number, "l": items}
    assume(not any(mark in json.dumps(arguments, ensure_ascii=False) for mark in ("</parameter>", "</arg_value>", "\ufdd0")))
    call = ToolCall("i", "f", json.dumps(arguments))
    template = ChatTemplate(getattr(tool_style_templates, family), bos="", eos="")
    question = (ChatMessage("user", "u"),)
    before, whole = template.render(question, TOOLS), template.render((*question, ChatMessage("assistant", "", (call,))), TOOLS)
    generation = len("<|start|>assistant" if family == "HARMONY" else "[assistant]")
    shown = whole.removeprefix(before)[:-generation]
    found = parsed(TEMPLATES[family], [shown])
    assert found.text == ""
    assert [(one.name, json.loads(one.arguments)) for one in found.calls] == [("f", arguments)]
