"""How an engine's raw answer becomes what a reader gets. A token is a character, and the parser is that of `test_answer_text`."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import pytest

from services.inference.backend_interface import AnswersEnded
from services.inference.chat import chat_messages
from services.inference.chat.answer_text import Parsing, SeparatedPiece
from services.inference.chat.chat_client import ChatClient
from services.inference.chat.chat_messages import OpenTemplate, RenderedPrompt, Trigger
from services.inference.chat.separated_answers import SeparatedAnswers
from shared import errors
from shared.api.generation import GenerationEnd, ToolCallPart, Usage
from shared.api.inference import Chunk, TokenChance, TokenLogprob
from shared.types import FinishReason
from tests import tiers
from tests.services.inference.chat.parsing import run
from tests.services.inference.chat.test_answer_text import CALL, DONE, ENOUGH, THINK, parse
from tests.services.inference.standins import Reader, job

RENDERED = RenderedPrompt("p", "", (Trigger("word", CALL),), THINK, (ENOUGH,), (DONE,), (), "parser")
ANSWER = f"{THINK}Hm, [x].{ENOUGH}So: 'END' {CALL}f{{1}}{DONE}\n{CALL}g{{}}{DONE}"
#: With text after the calls, whose end is held back while it may begin a marker.
LONG = f"{THINK}Hm.{ENOUGH}é So <3: {CALL}f{{1}}{DONE} after <"
STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


class FakeClient(ChatClient):
    """Parses in this process; fails on a text that contains ``lost_at``."""

    def __init__(self, lost_at: str = "") -> None:
        super().__init__(OpenTemplate(""), {})
        self.parsed = 0
        self._lost_at = lost_at

    async def separate(self, parsing: Parsing, parser: str) -> tuple[SeparatedPiece, ...]:
        assert parser == "parser"

        def counted(text: str) -> chat_messages.ParsedAnswer | chat_messages.ChatRefused | None:
            self.parsed += 1
            return None if self._lost_at and self._lost_at in text else parse(text)

        return run(parsing, counted)


async def send(
    pieces: Sequence[str],
    *,
    rendered: RenderedPrompt | None = RENDERED,
    delivered: str = "",
    finish: FinishReason = STOP,
    lost_at: str = "",
    **sampling: object,
) -> tuple[list[Chunk], GenerationEnd, list[None]]:
    reader, failures, client = Reader(), [], FakeClient(lost_at)
    asked = job(logit_bias={}, **sampling)
    asked = replace(asked, delivered=(1,) * len(delivered), request="request")
    plain = RenderedPrompt("p")
    answers = SeparatedAnswers(client if rendered else None, rendered or plain, asked, reader, lambda: failures.append(None))
    answers.accept(3)
    assert reader.prompt_tokens == 3
    at = len(delivered)
    if delivered:
        await answers.send(Chunk(delivered, ()))
    with suppress(AnswersEnded):
        for piece in pieces:
            tokens = tuple(range(at, at + len(piece)))
            await answers.send(Chunk(piece, tokens, 0, tuple(TokenLogprob(TokenChance(token, b"", -1.0)) for token in tokens)))
            at += len(piece)
        await answers.send(Chunk("", (), finish=finish))
    end = answers.complete(GenerationEnd(LENGTH, Usage(3, 999, 1)))
    assert end.usage.completion_tokens == len(reader.token_ids)
    assert end.finish_reason == reader.chunks[-1].finish
    assert all(len(chunk.token_ids) == len(chunk.logprobs) for chunk in reader.chunks)
    assert reader.token_ids == list(range(len(delivered), len(delivered) + len(reader.token_ids)))
    return reader.chunks, end, failures


def joined(chunks: Sequence[Chunk]) -> tuple[str, str, dict[int, tuple[str, str, str]]]:
    parts: dict[int, tuple[str, str, str]] = {}
    for part in (part for chunk in chunks for part in chunk.call_parts):
        call_id, name, arguments = parts.get(part.index, ("", "", ""))
        assert not (name and part.name)
        parts[part.index] = (call_id + part.id, name + part.name, arguments + part.arguments)
    text, reasoning = ("".join(getattr(chunk, name) for chunk in chunks) for name in ("text", "reasoning"))
    return text, reasoning, parts


async def test_thoughts_content_and_parts_of_calls_are_sent_apart() -> None:
    chunks, end, failures = await send(ANSWER)
    text, reasoning, parts = joined(chunks)
    assert (text, reasoning, failures) == ("So: 'END'", "Hm, [x].", [])
    assert [(name, arguments) for _, name, arguments in parts.values()] == [("f", "{1}"), ("g", "{}")]
    assert len({call_id for call_id, _, _ in parts.values()}) == 2
    assert all(call_id.startswith("call_") for call_id, _, _ in parts.values())
    assert any(part == ToolCallPart(0, "1") for chunk in chunks for part in chunk.call_parts), "arguments come while they are written"
    # The tags count as reasoning tokens.
    assert end.usage.reasoning_tokens == len(f"{THINK}Hm, [x].{ENOUGH}")
    assert end.usage.cached_tokens == 1


@pytest.mark.parametrize("answer", [ANSWER, LONG])
async def test_answer_is_the_same_for_every_split_and_after_every_resume(answer: str) -> None:
    whole, end, _ = await send([answer])
    letters, _, _ = await send(answer)
    assert joined(letters) == joined(whole)
    for at in range(1, len(answer)):
        before, _, _ = await send(answer[:at])
        # What the first worker sent before it was lost: all but the last chunk.
        sent, tokens = [], 0
        for chunk in before[:-1]:
            sent.append(chunk)
            tokens += len(chunk.token_ids)
        rest, rest_end, _ = await send(answer[tokens:], delivered=answer[:tokens])
        assert joined([*sent, *rest]) == joined(whole), at
        assert sum(len(chunk.token_ids) for chunk in [*sent, *rest]) == len(answer)
        thoughts = len(f"{THINK}Hm, [x].{ENOUGH}") if answer is ANSWER else len(f"{THINK}Hm.{ENOUGH}")
        assert rest_end.usage.reasoning_tokens == max(0, thoughts - tokens) or tokens < len(THINK) + 1
    assert end.finish_reason is STOP


async def test_stop_sequence_matches_in_content_only() -> None:
    chunks, end, _ = await send(ANSWER, stop=("Hm", "END", "f{1"), finish=LENGTH)
    text, reasoning, parts = joined(chunks)
    assert (text, reasoning, parts, end.finish_reason) == ("So: '", "Hm, [x].", {}, STOP)
    assert (end.usage.completion_tokens, end.stop_sequence) == (ANSWER.index("END") + 3, "END")
    _, end, _ = await send(ANSWER, stop=("nowhere",))
    assert end.stop_sequence is None


async def test_delivered_answer_that_is_complete_is_refused() -> None:
    with pytest.raises(errors.BadRequest, match="complete with these tokens"):
        await send("x", delivered="Hi END", stop=("END",))
    chunks, _, _ = await send("D.", delivered="Hi EN", stop=("END",))
    assert joined(chunks)[0] == ""


async def test_plain_answer_is_passed_on_as_it_is() -> None:
    chunks, end, _ = await send(["  Hi ", "", f"{THINK}\n"], rendered=None)
    assert [chunk.text for chunk in chunks] == ["  Hi ", f"{THINK}\n", ""]
    assert end.usage.reasoning_tokens == 0


async def test_lost_parser_makes_the_rest_text_and_is_counted_once() -> None:
    chunks, end, failures = await send(f"Hi {CALL}f{{1!}}{DONE} and more", lost_at="!")
    text, _, _ = joined(chunks)
    assert text.endswith(f"!}}{DONE} and more")
    assert text.startswith("Hi")
    assert (len(failures), end.finish_reason) == (1, STOP)


DEEP = tiers.volume(1_000_000)


@pytest.mark.parametrize("deep", ["[" * DEEP, "<call>f{" + '{"a":' * (DEEP // 5), THINK * (DEEP // 7)])
async def test_hostile_nesting_is_text(deep: str) -> None:
    chunks, _, _ = await send([deep[at : at + 5000] for at in range(0, len(deep), 5000)])
    text, reasoning, parts = joined(chunks)
    assert len(text) + len(reasoning) + sum(map(len, parts.get(0, ("", "", "")))) > len(deep) - 100


async def test_answers_of_one_request_are_independent() -> None:
    reader = Reader()
    answers = SeparatedAnswers(FakeClient(), RENDERED, job(n=2), reader, lambda: None)
    answers.accept(1)
    await answers.send(Chunk(f"{THINK}Hm", (1,), 0))
    await answers.send(Chunk("Yes", (2,), 1, finish=STOP))
    with pytest.raises(AnswersEnded, match=r"^$"):
        await answers.send(Chunk(f"{ENOUGH}No", (3,), 0, finish=LENGTH))
    end = answers.complete(GenerationEnd(STOP, Usage(1, 0)))
    assert end.finish_reasons == (LENGTH, STOP)
    assert [(chunk.answer, chunk.reasoning, chunk.text) for chunk in reader.chunks] == [(0, "Hm", ""), (1, "", "Yes"), (0, "", "No")]
    assert (end.usage.completion_tokens, end.usage.reasoning_tokens) == (3, 1)


async def test_token_waits_until_its_text_is_settled() -> None:
    """A long call isn't parsed for each token. A resumed answer must get the text that no chunk had."""
    answer = f"{CALL}f{{" + "x" * 2000
    reader = Reader()
    answers = SeparatedAnswers(FakeClient(), RENDERED, job(), reader, lambda: None)
    for at, letter in enumerate(answer):
        await answers.send(Chunk(letter, (at,)))
        sent = len("".join(part.arguments for chunk in reader.chunks for part in chunk.call_parts))
        tokens = len(reader.token_ids)
        assert tokens <= len(f"{CALL}f") + sent or tokens <= len(f"{CALL}f{{")
    assert len(reader.token_ids) < len(answer)


async def test_notice_comes_through_and_is_no_text() -> None:
    reader = Reader()
    asked = replace(job(), delivered=(1,), request="request")
    answers = SeparatedAnswers(FakeClient(), RENDERED, asked, reader, lambda: None)
    await answers.send(Chunk("", (), waiting="parked"))
    await answers.send(Chunk(f"{THINK}Hm", ()))
    assert [chunk.waiting for chunk in reader.chunks] == ["parked"]
