import codecs
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.inference.chat.answer_text import MAX_NESTING, AnswerMarks, AnswerSeparator, ParseReply, SeparatedPiece, TextChannel
from services.inference.chat.chat_messages import ChatRefused, ParsedAnswer, ParsedCall, RenderedPrompt, Trigger
from tests.services.inference.chat.parsing import joined, read, run

THINK, ENOUGH, CALL, DONE = "<think>", "</think>", "<call>", "</call>"
MARKS = AnswerMarks((THINK, ENOUGH, CALL, DONE))
REASONING, CONTENT = TextChannel.REASONING, TextChannel.CONTENT


def parse(text: str) -> ParseReply:
    """Parse like llama.cpp, without it: read a text that ends early, and refuse text that can't become an answer."""
    if text and THINK.startswith(text):
        return ParsedAnswer()
    reasoning, rest, at = "", text, 0
    if text.startswith(THINK):
        reasoning, ended, rest = text.removeprefix(THINK).partition(ENOUGH)
        at = len(THINK) + len(reasoning.rstrip()) if reasoning.strip() else 0
        if not ended:
            reasoning = without_beginning(reasoning, ENOUGH)
            return ParsedAnswer(reasoning, end=len(THINK) + len(reasoning.rstrip()) if reasoning.strip() else 0)
    content, called, behind = rest.lstrip().partition(CALL)
    content = content if called else without_beginning(content, CALL)
    if content.strip():
        at = len(text) - len(rest.lstrip()) + len(content.rstrip())
    calls: list[ParsedCall] = []
    while called:
        name, begun, arguments = behind.partition("{")
        if re.fullmatch("[a-z]*", name) is None:
            return ChatRefused("no name")
        if not begun:
            break
        arguments, done, behind = f"{{{arguments}".partition(DONE)
        calls.append(ParsedCall(name, arguments if done else without_beginning(arguments, DONE)))
        following, called, after = behind.lstrip().partition(CALL)
        if following.strip() and not (CALL.startswith(following) and not called):
            return ChatRefused("something behind a call")
        behind = after
    return ParsedAnswer(reasoning, content, tuple(calls), at)


def without_beginning(text: str, mark: str) -> str:
    return next((text[: -len(part)] for part in (mark[:size] for size in range(len(mark), 0, -1)) if text.endswith(part)), text)


def call(text: str, index: int, name: str) -> SeparatedPiece:
    return SeparatedPiece(TextChannel.CALL, text, index, name)


def piece(channel: TextChannel, text: str) -> SeparatedPiece:
    return SeparatedPiece(channel, text)


texts = st.lists(
    st.sampled_from([THINK, ENOUGH, CALL, DONE, "<", "</", "a", "b{", "}", "[", "é", " ", "\n", "call{}", "x" * 70]), max_size=14
).map("".join)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        pytest.param("Hi <3 you", [piece(CONTENT, "Hi <3 you")], id="content"),
        pytest.param("a <", [piece(CONTENT, "a <")], id="what looked like a mark was none"),
        pytest.param("a \n", [piece(CONTENT, "a \n")], id="spaces at the end"),
        pytest.param("<think>Hm. \n</think>\n\nYes.", [piece(REASONING, "Hm."), piece(CONTENT, "Yes.")], id="thoughts"),
        pytest.param("<think>Hm", [piece(REASONING, "Hm")], id="only thoughts"),
        pytest.param(
            "So:<call>f{1}</call>\n<call>g{}</call>",
            [piece(CONTENT, "So:"), call("{1}", 0, "f"), call("{}", 1, "g")],
            id="calls",
        ),
        pytest.param("So:<call>7{}", [piece(CONTENT, "So:<call>7{}")], id="no call"),
        pytest.param("<call>f{}</call> more", [call("{}", 0, "f"), piece(CONTENT, "more")], id="text behind a call"),
        pytest.param("<call>f{}</call> <c3", [call("{}", 0, "f"), piece(CONTENT, "<c3")], id="what looked like a mark behind a call"),
        pytest.param("", [], id="nothing"),
    ],
)
def test_answer_is_separated(text: str, pieces: list[SeparatedPiece]) -> None:
    assert read([text], MARKS, parse) == pieces
    assert read(text, MARKS, parse) == pieces


@given(texts, st.data())
@example("<call>f{}</call> <ca", None)
@example("a<call>\n", None)
def test_every_split_gives_the_same_pieces(text: str, data: st.DataObject | None) -> None:
    whole = read([text], MARKS, parse)
    decoder = codecs.getincrementaldecoder("utf-8")()
    assert read([decoder.decode(bytes([byte])) for byte in text.encode()], MARKS, parse) == whole
    if data is not None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
        assert read([text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)], MARKS, parse) == whole


@given(texts, st.integers(0, 200))
def test_resumed_answer_continues_where_it_was(text: str, at: int) -> None:
    answer = AnswerSeparator(MARKS)
    sent = [piece for letter in text[:at] for piece in run(answer.feed(letter), parse)]
    assert answer.settled == len(text[:at])
    assert joined([*sent, *read(text[at:], MARKS, parse, delivered=text[:at])]) == read([text], MARKS, parse)


def test_text_in_which_no_mark_can_begin_is_not_parsed() -> None:
    parsed: list[str] = []
    answer = AnswerSeparator(MARKS)

    def counted(text: str) -> ParseReply:
        parsed.append(text)
        return parse(text)

    sent = [run(answer.feed(word), counted) for word in ("Hi", " there", " you", " <", "3", " all")]
    assert parsed == ["Hi", "Hi there you <", "Hi there you <3"]
    assert sent[1:3] == [(piece(CONTENT, " there"),), (piece(CONTENT, " you"),)]


def test_pattern_that_starts_a_call_has_every_piece_parsed() -> None:
    rendered = RenderedPrompt("", "", (Trigger("pattern", "^ to="), Trigger("word", CALL)), THINK, (ENOUGH,), (), ("<end>",), "")
    assert AnswerMarks.of(rendered) == AnswerMarks((THINK, ENOUGH, CALL, "<end>"), unknown=True)
    answer = AnswerSeparator(AnswerMarks.of(rendered))
    run(answer.feed("Hi"), parse)
    assert next(answer.feed(" there")) == "Hi there"


@pytest.mark.parametrize("bracket", ["[", '{"a":'])
def test_deep_brackets_are_text_and_never_parsed(bracket: str) -> None:
    text = "So:<call>f{" + bracket * 200_000
    limit = len("So:<call>f{") + len(bracket) * (MAX_NESTING - 1)
    longest = 0

    def measured(text: str) -> ParseReply:
        nonlocal longest
        longest = max(longest, len(text))
        return parse(text)

    pieces = read([text[start : start + 100] for start in range(0, len(text), 100)], MARKS, measured)
    assert longest == limit
    assert pieces == [
        piece(CONTENT, "So:"), call( text[len("So:<call>f") : limit], 0, "f"), piece(CONTENT, text[limit:])
    ]  # fmt: skip


def test_closed_brackets_are_not_deep() -> None:
    text = "<call>f{" + "[]" * 1000 + "}</call>"
    assert [each.channel for each in read(text, MARKS, parse)] == [TextChannel.CALL]


def test_lost_parser_makes_the_rest_text() -> None:
    """No text is lost or duplicated, and the lost parser isn't asked again."""
    asked = 0

    def deadly(text: str) -> ParseReply:
        nonlocal asked
        asked += "!" in text
        return None if "!" in text else parse(text)

    answer = AnswerSeparator(MARKS)
    pieces = joined(piece for part in ("Hi <call>", "f{1", "2!", "3}</call>") for piece in run(answer.feed(part), deadly))
    assert pieces == [piece(CONTENT, "Hi"), call("{1", 0, "f"), piece(CONTENT, "2!3}</call>")]
    assert answer.failed
    assert asked == 1


def test_long_call_is_parsed_in_proportion_to_its_length() -> None:
    """The parser reads about 256 times the call's length in total, not its length squared."""
    read_chars = 0

    def measured(text: str) -> ParseReply:
        nonlocal read_chars
        read_chars += len(text)
        return parse(text)

    arguments = "x" * 65_536
    pieces = read([f"<call>f{{{arguments[:4]}", *[arguments[at : at + 4] for at in range(4, len(arguments), 4)]], MARKS, measured)
    assert pieces == [call("{" + arguments, 0, "f")]
    assert read_chars < 280 * len(arguments)
