import itertools
import json
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.tool_calls import call_json, tool_call_parser
from services.inference.tool_calls.tool_call_parser import ParsedText, ToolCallParser
from services.inference.tool_calls.tool_format import ToolStyle
from shared.api.generation import Tool, ToolCall
from tests import tiers

TOOLS = (Tool("f"), Tool("get_weather"))
F = '{"name": "f", "arguments": {"a": 1}}'
LLAMA_F = '{"name": "f", "parameters": {"a": 1}}'
TAGGED = f"<tool_call>\n{F}\n</tool_call>"
LONG = "x" * call_json.MAX_HELD_CHARACTERS
A = ("f", '{"a": 1}')


def parsed(style: ToolStyle, pieces: Iterable[str]) -> ParsedText:
    """All that came out of one answer."""
    numbers = itertools.count()
    parser = ToolCallParser(style, TOOLS, lambda: f"call_{next(numbers)}")
    parts = [parser.push(piece) for piece in pieces]
    parts.append(parser.finish())
    return ParsedText("".join(part.text for part in parts), tuple(call for part in parts for call in part.calls))


def expected(text: str, *calls: tuple[str, str]) -> ParsedText:
    return ParsedText(text, tuple(ToolCall(f"call_{number}", name, arguments) for number, (name, arguments) in enumerate(calls)))


CASES = [
    # Hermes
    pytest.param("hermes", TAGGED, expected("", A), id="hermes: one call"),
    pytest.param("hermes", f"I look.\n\n{TAGGED}\n{TAGGED}\n", expected("I look.", A, A), id="hermes: a text and two calls"),
    pytest.param("hermes", f"{TAGGED}\n\nDone.", expected("\n\nDone.", A), id="hermes: a text behind a call"),
    pytest.param("hermes", f"<tool_call>{F}", expected("", A), id="hermes: the answer ends before the closing tag"),
    pytest.param("hermes", f"<tool_call>{F}\n</tool", expected("", A), id="hermes: the answer ends in the closing tag"),
    pytest.param("hermes", f"<tool_call>{F}<tool_call>{F}", expected("", A, A), id="hermes: no closing tags at all"),
    pytest.param("hermes", f"<tool_call>{F}</toolbox>", expected("</toolbox>", A), id="hermes: another tag behind"),
    pytest.param(
        "hermes", '<tool_call>{"arguments": {}, "name": "f"}</tool_call>', expected("", ("f", "{}")), id="hermes: the name comes last"
    ),
    pytest.param(
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"t": "a } ] \\" </tool_call> \\\\"}}</tool_call>',
        expected("", ("f", '{"t": "a } ] \\" </tool_call> \\\\"}')),
        id="hermes: brackets and tags inside a text",
    ),
    pytest.param(
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
        expected("", ("f", '{"a": 1}')),
        id="hermes: arguments as a text",
    ),
    pytest.param(
        "hermes",
        '<tool_call>{"name": "g", "arguments": {}}</tool_call>',
        expected('<tool_call>{"name": "g", "arguments": {}}</tool_call>'),
        id="hermes: a tool that nobody offered",
    ),
    pytest.param(
        "hermes", '<tool_call>{"name": "f"}</tool_call>', expected('<tool_call>{"name": "f"}</tool_call>'), id="hermes: no arguments"
    ),
    pytest.param(
        "hermes",
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        expected('<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        id="hermes: arguments that are a list",
    ),
    pytest.param(
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a" 1}}</tool_call>',
        expected('<tool_call>{"name": "f", "arguments": {"a" 1}}</tool_call>'),
        id="hermes: broken JSON",
    ),
    pytest.param("hermes", f"<tool_call>{{<tool_call>{F}", expected("<tool_call>{", A), id="hermes: a call inside a broken one"),
    pytest.param("hermes", f"<tool_call> <tool_call>{F}", expected("<tool_call> ", A), id="hermes: a call behind an empty tag"),
    pytest.param("hermes", f"<<tool_call>{F}", expected("<", A), id="hermes: half a tag before a tag"),
    pytest.param("hermes", "<tool_call>{]", expected("<tool_call>{]"), id="hermes: brackets that do not match"),
    pytest.param("hermes", "a <tool_call", expected("a <tool_call"), id="hermes: half a tag"),
    pytest.param("hermes", '<tool_call>{"name": "f", "arg', expected('<tool_call>{"name": "f", "arg'), id="hermes: half a call"),
    pytest.param("hermes", F, expected(F), id="hermes: JSON without a tag is an answer"),
    pytest.param("hermes", "  \n ", expected("  \n "), id="hermes: nothing but blanks"),
    pytest.param("hermes", " " * 100 + TAGGED, expected(" " * 36, A), id="hermes: more blanks than belong to a call"),
    pytest.param("hermes", f"<tool_call>{F}" + " " * 100, expected(" " * 36, A), id="hermes: more blanks than belong behind a call"),
    pytest.param("hermes", '<tool_call>{"name": "' + LONG, expected('<tool_call>{"name": "' + LONG), id="hermes: a call without end"),
    pytest.param("hermes", "<tool_call>" + "[" + LONG, expected("<tool_call>[" + LONG), id="hermes: a list is no call"),
    pytest.param("hermes", "<tool_call>" + '{"a":' * 70, expected("<tool_call>" + '{"a":' * 70), id="hermes: too deep"),
    pytest.param(
        "hermes", f"<tool_call>{LONG * 2}{TAGGED}", expected(f"<tool_call>{LONG * 2}", A), id="hermes: a call far behind a lone tag"
    ),
    # Llama
    pytest.param("llama", LLAMA_F, expected("", A), id="llama: one call"),
    pytest.param("llama", f"\n<|python_tag|> {LLAMA_F} \n", expected("", A), id="llama: behind its tag"),
    pytest.param("llama", f"{LLAMA_F}; {LLAMA_F}\n{F}", expected("", A, A, A), id="llama: several calls"),
    pytest.param("llama", '{"type": "function", "name": "f", "parameters": {}}', expected("", ("f", "{}")), id="llama: with a type"),
    pytest.param("llama", f"{LLAMA_F} So be it.", expected(f"{LLAMA_F} So be it."), id="llama: a text behind makes it an answer"),
    pytest.param("llama", f"Well: {LLAMA_F}", expected(f"Well: {LLAMA_F}"), id="llama: a text before makes it an answer"),
    pytest.param("llama", f"; {LLAMA_F}", expected(f"; {LLAMA_F}"), id="llama: a semicolon before makes it an answer"),
    pytest.param("llama", '<|python_tag|>print("a")', expected('<|python_tag|>print("a")'), id="llama: Python behind its tag"),
    pytest.param("llama", "<|python", expected("<|python"), id="llama: half a tag"),
    pytest.param(
        "llama",
        f'{LLAMA_F}{{"name": "g", "parameters": {{}}}}',
        expected(f'{LLAMA_F}{{"name": "g", "parameters": {{}}}}'),
        id="llama: an unknown tool behind a known one",
    ),
    pytest.param("llama", '{"answer": {"name": "f"}}', expected('{"answer": {"name": "f"}}'), id="llama: an answer in JSON"),
    pytest.param("llama", f"{LLAMA_F}{' ' * len(LONG)}", expected(f"{LLAMA_F}{' ' * len(LONG)}"), id="llama: too long"),
    # Mistral
    pytest.param("mistral", f"[TOOL_CALLS] [{F}, {F}]", expected("", A, A), id="mistral: two calls"),
    pytest.param("mistral", f"Wait. [TOOL_CALLS][{F}] ok", expected("Wait. ok", A), id="mistral: texts around"),
    pytest.param("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "a"}]', expected("", ("f", "{}")), id="mistral: with an id"),
    pytest.param(
        "mistral",
        f'[TOOL_CALLS][{F}, {{"name": "g"}}]',
        expected(f'[TOOL_CALLS][{F}, {{"name": "g"}}]'),
        id="mistral: one of two is unknown",
    ),
    pytest.param("mistral", "[TOOL_CALLS][]", expected("[TOOL_CALLS][]"), id="mistral: an empty list"),
    pytest.param("mistral", "[TOOL_CALLS][1, 2]", expected("[TOOL_CALLS][1, 2]"), id="mistral: a list of numbers"),
    pytest.param("mistral", f"[TOOL_CALLS]{F}", expected(f"[TOOL_CALLS]{F}"), id="mistral: no list"),
    # any other model
    pytest.param("generic", F, expected("", A), id="generic: an object"),
    pytest.param("generic", f"[{LLAMA_F}, {F}]", expected("", A, A), id="generic: a list of objects"),
    pytest.param(
        "generic",
        '{"answer": 1, "name": "f", "arguments": {}}',
        expected('{"answer": 1, "name": "f", "arguments": {}}'),
        id="generic: an answer with the keys of a call",
    ),
    pytest.param("generic", "[]", expected("[]"), id="generic: an empty list"),
    pytest.param("generic", "{}", expected("{}"), id="generic: an empty object"),
    pytest.param("generic", "[[[", expected("[[["), id="generic: lists in each other"),
    pytest.param("generic", "Hello { there", expected("Hello { there"), id="generic: an ordinary answer"),
    pytest.param(
        "generic",
        '{"name": "f", "arguments": {"a": 1e999}}',
        expected('{"name": "f", "arguments": {"a": 1e999}}'),
        id="generic: a number that is none",
    ),
    pytest.param(
        "generic",
        '{"name": "f", "arguments": {"a": "\ud800"}}',
        expected('{"name": "f", "arguments": {"a": "\ud800"}}'),
        id="generic: half a character",
    ),
    pytest.param("generic", "", expected(""), id="generic: nothing"),
]


@pytest.mark.parametrize(("style", "answer", "result"), CASES)
def test_whole_answer(style: str, answer: str, result: ParsedText) -> None:
    assert parsed(ToolStyle(style), [answer]) == result


@pytest.mark.parametrize(("style", "answer", "result"), CASES)
def test_answer_split_by_character_or_in_two(style: str, answer: str, result: ParsedText) -> None:
    assert parsed(ToolStyle(style), answer) == result
    # Every cut of a short answer; of a long one some near its ends, where the decisions are.
    for cut in range(len(answer)) if len(answer) < 1_000 else (1, 12, len(answer) - 50):
        assert parsed(ToolStyle(style), [answer[:cut], answer[cut:]]) == result


fragments = st.sampled_from(
    (
        *("<tool_call>", "</tool_call>", "<tool_", "call>", "[TOOL_CALLS]", "<|python_tag|>", F, LLAMA_F, f"[{F}]", TAGGED),
        *(
            '{"name": "f", ',
            '"arguments": ',
            '"parameters": {',
            "{",
            "}",
            "[",
            "]",
            '"',
            "\\",
            ";",
            ",",
            " ",
            "\n",
            "a",
            "1",
            "é",
            " " * 70,
        ),
    )
)


@given(st.sampled_from(ToolStyle), st.lists(st.one_of(fragments, st.text(max_size=3)), max_size=12), st.data())
def test_split_makes_no_difference(style: ToolStyle, answer: list[str], data: st.DataObject) -> None:
    text = "".join(answer)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[first:last] for first, last in itertools.pairwise([0, *cuts, len(text)])]
    whole = parsed(style, [text])
    assert parsed(style, pieces) == whole == parsed(style, text)
    if not whole.calls:
        assert whole.text == text


@pytest.mark.parametrize("style", ToolStyle)
def test_random_text_without_calls_keeps_every_character(style: ToolStyle) -> None:
    random_source = random.Random(4)
    signs = (
        "<tool_call>",
        "[TOOL_CALLS]",
        "<|python_tag|>",
        '{"name": "f"',
        '"arguments": {',
        "}",
        "]",
        "[",
        '"',
        " ",
        "\n",
        "ab",
        "é",
        "\\",
    )
    for _ in range(tiers.volume(2_000)):
        text = "".join(random_source.choices(signs, k=random_source.randrange(20)))
        found = parsed(style, text)
        assert found.calls or found.text == text


@pytest.mark.parametrize(
    ("style", "pieces", "shown"),
    [
        pytest.param("hermes", ["Hel", "lo", " the", "re. "], ["Hel", "lo", " the", "re."], id="a text goes on at once"),
        pytest.param("hermes", ["a <", "b> <to", "ol"], ["a", " <b>", ""], id="what may be a tag waits"),
        pytest.param("hermes", ["<tool_call>{", "x"], ["", "<tool_call>{x"], id="what is no JSON goes on at once"),
        pytest.param("generic", ['{"na', 'tion": ', "[1"], ["", '{"nation": ', "[1"], id="an answer in JSON goes on behind its first key"),
        pytest.param("generic", ["Sure, ", '{"name": "f"'], ["Sure, ", '{"name": "f"'], id="an answer never becomes a call"),
        pytest.param("llama", ["\n", "<|py", "x"], ["", "", "\n<|pyx"], id="what is no tag goes on"),
        pytest.param("mistral", ["[1, ", "[TOOLS]"], ["[1,", " [TOOLS]"], id="another bracket is no tag"),
    ],
)
def test_text_that_cannot_be_a_call_is_not_held_back(style: str, pieces: list[str], shown: list[str]) -> None:
    parser = ToolCallParser(ToolStyle(style), TOOLS, lambda: "i")
    assert [parser.push(piece).text for piece in pieces] == shown


def test_tagged_call_is_emitted_as_soon_as_it_is_complete() -> None:
    parser = ToolCallParser(ToolStyle.HERMES, TOOLS, lambda: "i")
    assert parser.push(f"<tool_call>{F[:-1]}").calls == ()
    assert parser.push("}").calls == (ToolCall("i", *A),)
    assert parser.push("\n</tool_call>\n") == parser.finish() == ParsedText()


@pytest.mark.parametrize("style", ToolStyle)
def test_held_back_text_is_bounded(style: ToolStyle) -> None:
    parser = ToolCallParser(style, TOOLS, lambda: "i")
    opening = {ToolStyle.HERMES: "<tool_call>{", ToolStyle.MISTRAL: "[TOOL_CALLS][{"}.get(style, "{")
    sent = opening + '"name": "f", "arguments": {"a": "'
    shown = parser.push(sent).text
    for _ in range(200):
        sent += "x" * 1_000
        shown += parser.push("x" * 1_000).text
        assert len(sent) - len(shown) <= call_json.MAX_HELD_CHARACTERS
    assert shown + parser.finish().text == sent


@pytest.mark.parametrize("style", ToolStyle)
@pytest.mark.parametrize(
    "part", ["<tool_call>", "<tool_call>{", '<tool_call>{"', "[TOOL_CALLS][", "[TOOL_CALLS][{", "<tool_call", "<", "{", "[", ";", " "]
)
def test_hostile_answers_are_text(style: ToolStyle, part: str) -> None:
    """Each would take minutes if any part of it were scanned again and again."""
    text = part * (150_000 // len(part))
    assert parsed(style, [text]) == ParsedText(text)
    few = text[:9_000]
    assert parsed(style, [few[at : at + 3] for at in range(0, len(few), 3)]) == ParsedText(few)


def test_ids_are_long_and_the_same_on_every_worker() -> None:
    first, again, other = tool_call_parser.ids_of("request-1"), tool_call_parser.ids_of("request-1"), tool_call_parser.ids_of("request-2")
    ids = [first() for _ in range(100)]
    assert ids == [again() for _ in range(100)]
    assert len({*ids, other()}) == 101
    assert all(len(identity) == 29 and identity.startswith("call_") and identity[5:].isalnum() and identity.isascii() for identity in ids)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_arguments_are_passed_on_verbatim(value: object) -> None:
    arguments = json.dumps({"value": value})
    found = parsed(ToolStyle.HERMES, f'<tool_call>{{"name": "get_weather", "arguments": {arguments}}}</tool_call>')
    assert found == expected("", ("get_weather", arguments))
