"""Levels only add restrictions, texts are masked or end early, and JSON stays JSON."""

import json
from typing import Any

import msgspec
import pytest

from services.gateway.facts import guardrails
from services.gateway.facts.guardrails import Guardrails, GuardScan
from services.gateway.guard import answer_guard
from services.gateway.guard.answer_guard import AnswerGuard
from services.gateway.guard.guarded_text import GuardMatches, guard_json, guard_whole
from shared.api.generation import GenerationEnd, ToolCall, Usage
from shared.api.inference import Chunk
from shared.config_documents import GuardAction, GuardDocument, GuardKind
from shared.types import FinishReason

CARD = "4111 1111 1111 1111"
DONE = GenerationEnd(FinishReason.STOP, Usage(1, 1))


def guard(*levels: dict[str, Any]) -> Guardrails:
    documents = [msgspec.convert(level, GuardDocument) for level in levels]
    return guardrails.combine([(f"level{number}", document) for number, document in enumerate(documents)])


def scan(**actions: str) -> GuardScan:
    return guard(
        {"prompt": actions, "countries": ["US"], "patterns": [{"name": "project", "pattern": "PRJ-[0-9]+", "max_length": 9}]}
    ).prompt


def test_the_strictest_action_of_each_kind_counts() -> None:
    found = guard({"prompt": {"email": "mask", "card": "refuse"}}, {"prompt": {"email": "report", "card": "off", "phone": "report"}})
    assert found.prompt.actions == {GuardKind.CARD: "refuse", GuardKind.EMAIL: "mask", GuardKind.PHONE: "report"}
    assert found.prompt.levels == {GuardKind.CARD: "level0", GuardKind.EMAIL: "level0", GuardKind.PHONE: "level1"}
    assert not found.answer
    assert not guard({"prompt": {"email": "off"}}).prompt
    assert not guard().prompt


def test_a_level_adds_patterns_and_countries_but_allows_nothing_alone() -> None:
    first = {"prompt": {"email": "mask"}, "allow": ["a@b.example", "c@d.example"], "countries": ["DE"]}
    found = guard(first, {"allow": ["c@d.example", "e@f.example"], "countries": ["US", "DE"], "internal_ips": True}).prompt
    assert (found.allow, found.countries, found.internal_ips) == (("c@d.example",), ("DE", "US"), True)
    assert guard(first).prompt.allow == ("a@b.example", "c@d.example")


def test_masked_reported_and_refused_texts() -> None:
    matches = GuardMatches()
    text = f"mail a@b.example, PRJ-12, 8.8.8.8, {CARD} and more"
    assert guard_whole(text, scan(email="mask", own="mask", ip="report"), matches) == (
        f"mail [email], [project], 8.8.8.8, {CARD} and more", None
    )  # fmt: skip
    assert matches == {
        (GuardKind.EMAIL, GuardAction.MASK): 1, (GuardKind.OWN, GuardAction.MASK): 1, (GuardKind.IP, GuardAction.REPORT): 1
    }  # fmt: skip
    assert guard_whole(text, scan(email="mask", card="refuse"), GuardMatches()) == ("mail [email], PRJ-12, 8.8.8.8, ", GuardKind.CARD)


def test_json_is_masked_inside_its_texts() -> None:
    masks = scan(email="mask", card="mask", national_id="mask")
    arguments = {"to": "a@b.example", "n": 4111111111111111, "ok": True, "more": [{"a@b.example": None}, 1.5], "ssn": "123-45-6789"}
    shown, refused = guard_json(json.dumps(arguments), masks, GuardMatches())
    assert json.loads(shown) == {
        "to": "[email]", "n": "[card]", "ok": True, "more": [{"[email]": None}, 1.5], "ssn": "[national_id]"
    }  # fmt: skip
    assert refused is None
    assert guard_json('{"escaped": "a\\u0040b.example"}', masks, GuardMatches())[0] == '{"escaped":"[email]"}'
    assert guard_json('{"to":  "nobody" }', masks, GuardMatches())[0] == '{"to":  "nobody" }', "as it was"
    assert guard_json('{"broken": "a@b.example', masks, GuardMatches())[0] == '{"broken": "[email]'
    assert guard_json(json.dumps(arguments), scan(card="refuse"), GuardMatches())[1] is GuardKind.CARD
    deep = "[" * 5_000 + '"a@b.example"' + "]" * 5_000
    assert "[email]" in guard_json(deep, masks, GuardMatches())[0]


def shown(answers: AnswerGuard, *chunks: Chunk) -> list[tuple[int, str]]:
    found = [shown for chunk in chunks if (shown := answers.read(chunk)) is not None]
    return [(chunk.answer, chunk.text) for chunk in (*found, *answers.end()) if chunk.text]


def test_each_answer_has_its_own_text() -> None:
    pieces = [Chunk(text, (1,), answer=answer) for text in ("card 4111 ", "1111 1111", " 1111 ok") for answer in (0, 1)]
    found = shown(AnswerGuard(scan(card="mask")), *pieces)
    assert ["".join(text for number, text in found if number == answer) for answer in (0, 1)] == ["card [card] ok"] * 2


def test_a_refused_answer_ends_and_others_go_on() -> None:
    answers = AnswerGuard(scan(card="refuse"))
    chunks = [Chunk(f"see {CARD} and then ", (1,), answer=1), Chunk("fine ", (1,)), Chunk("more", (2,), answer=1), Chunk("too", (2,))]
    assert shown(answers, *chunks) == [(1, "see "), (0, "fine "), (0, "too")]
    ended = answer_guard.filtered(msgspec.structs.replace(DONE, finish_reasons=(FinishReason.STOP, FinishReason.STOP)), answers.refused)
    assert ended.finish_reasons == (FinishReason.STOP, FinishReason.CONTENT_FILTER)
    assert answers.refused == {1: GuardKind.CARD}


def test_arguments_of_tools_are_masked_and_what_is_held_comes_before_them() -> None:
    call = ToolCall("1", "send", '{"to": "a@b.example"}')
    answers = AnswerGuard(scan(email="mask"))
    (chunk,) = [answers.read(Chunk("sending", (1,), tool_calls=(call,)))]
    assert chunk is not None
    assert (chunk.text, chunk.tool_calls) == ("sending", (ToolCall("1", "send", '{"to":"[email]"}'),))
    assert chunk.token_ids == (), "they would tell what is masked"
    refusing = AnswerGuard(scan(email="refuse"))
    assert refusing.read(Chunk("", (1,), tool_calls=(call,))) is None
    assert answer_guard.filtered(DONE, refusing.refused).finish_reason is FinishReason.CONTENT_FILTER


def test_the_name_of_a_called_tool_is_guarded() -> None:
    call = ToolCall("1", "mail_a@b.example", "{}")
    chunk = AnswerGuard(scan(email="mask")).read(Chunk("", (1,), tool_calls=(call,)))
    assert chunk is not None
    assert chunk.tool_calls == (ToolCall("1", "[email]", "{}"),)
    refusing = AnswerGuard(scan(email="refuse"))
    assert refusing.read(Chunk("", (1,), tool_calls=(call,))) is None
    assert refusing.refused == {0: GuardKind.EMAIL}


def test_reports_change_nothing() -> None:
    answers = AnswerGuard(scan(email="report"))
    chunk = Chunk("to a@b.exam", (1,))
    assert answers.read(chunk) is chunk
    answers.read(Chunk("ple now", (2,)))
    assert answers.end() == []
    assert answers.matches == {(GuardKind.EMAIL, GuardAction.REPORT): 1}


@pytest.mark.parametrize("text", ["", " ", "a"])
def test_short_answers(text: str) -> None:
    assert "".join(piece for _, piece in shown(AnswerGuard(scan(card="mask")), Chunk(text, (1,)))) == text
