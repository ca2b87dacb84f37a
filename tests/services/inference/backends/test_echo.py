import asyncio
from dataclasses import replace

import msgspec
import pytest

from services.inference.backends import echo
from shared import errors
from shared.api.generation import ChatMessage, GenerationEnd, Usage
from shared.types import FinishReason
from tests.services.inference.standins import Reader, Watch, job, until


async def test_echo_repeats_the_prompt_word_by_word() -> None:
    reader = Reader()
    async with echo.opened(0, 32, Watch()) as backend:
        end = await backend.generate(job("one two\nthree"), reader)
    assert reader.accepted
    assert [chunk.text for chunk in reader.chunks] == ["one", " two", "\nthree"]
    assert reader.token_ids == [echo.token_id(word) for word in ("one", " two", "\nthree")]
    assert end == GenerationEnd(FinishReason.STOP, Usage(3, 3))


async def test_echo_repeats_the_last_message_of_a_chat() -> None:
    reader = Reader()
    async with echo.opened(0, 32, Watch()) as backend:
        end = await backend.generate(job((ChatMessage("system", "be brief"), ChatMessage("user", "hello you"))), reader)
    assert reader.text == "hello you"
    assert end.usage == Usage(4, 2)


@pytest.mark.parametrize("delivered", range(6))
async def test_marked_words_are_thoughts(delivered: int) -> None:
    prompt = "a <think> b c </think> d"
    tokens = tuple(echo.token_id(word) for word in ("a", " <think>", " b", " c", " </think>")[:delivered])
    reader = Reader()
    async with echo.opened(0, 32, Watch()) as backend:
        end = await backend.generate(replace(job(prompt, stop=("c",)), delivered=tokens), reader)
    assert "".join(chunk.reasoning for chunk in reader.chunks) == "".join((" b", " c")[max(0, delivered - 2) :])
    assert reader.text == ("a d" if not delivered else " d")
    assert end.usage.reasoning_tokens == min(4, 5 - delivered)


async def test_max_tokens_ends_the_answer() -> None:
    reader = Reader()
    async with echo.opened(0, 32, Watch()) as backend:
        end = await backend.generate(job("a b c d", max_tokens=2), reader)
    assert reader.text == "a b"
    assert end == GenerationEnd(FinishReason.LENGTH, Usage(4, 2))


async def test_stop_sequence_across_two_words_ends_the_answer() -> None:
    reader = Reader()
    async with echo.opened(0, 32, Watch()) as backend:
        end = await backend.generate(job("a b c d", stop=("b c",)), reader)
    assert reader.text == "a "
    assert end == GenerationEnd(FinishReason.STOP, Usage(4, 3), stop_sequence="b c")


async def test_held_back_text_is_sent_at_the_end() -> None:
    reader = Reader()
    async with echo.opened(0, 32, Watch()) as backend:
        await backend.generate(job("a b", stop=("b c",)), reader)
    assert reader.text == "a b"


async def test_canceled_job_stops_immediately_and_frees_its_slot() -> None:
    reader, watch = Reader(), Watch()
    async with echo.opened(10_000, 32, watch) as backend:
        task = asyncio.create_task(backend.generate(job("a b c"), reader))
        await asyncio.sleep(0)
        assert backend.models()[0].running == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend.models()[0].running == 0
    assert reader.chunks == []
    assert watch.changes == 2


async def test_many_jobs_interleave() -> None:
    readers = [Reader() for _ in range(50)]
    async with echo.opened(0, 32, Watch()) as backend:
        await asyncio.gather(*(backend.generate(job("word " * 100), reader) for reader in readers))
    assert {len(reader.chunks) for reader in readers} == {100}


async def test_jobs_beyond_slots_and_queue_are_refused() -> None:
    async with echo.opened(10_000, 0, Watch()) as backend, asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(backend.generate(job("a"), Reader())) for _ in range(echo.SLOTS)]
        await asyncio.sleep(0)
        with pytest.raises(errors.Overloaded):
            await backend.generate(job("a"), Reader())
        for task in running:
            task.cancel()


@pytest.mark.parametrize(("stop", "max_tokens"), [((), 9), ((), 4), (("d e",), 9)], ids=["to its end", "to its limit", "to a stop"])
async def test_another_echo_continues_from_every_split(stop: tuple[str, ...], max_tokens: int) -> None:
    prompt_job = job("a b c d e f", stop=stop, max_tokens=max_tokens)
    async with echo.opened(0, 32, Watch()) as backend:
        whole = Reader()
        end = await backend.generate(prompt_job, whole)
        for split in range(1, len(whole.token_ids)):
            rest = Reader()
            resumed = await backend.generate(replace(prompt_job, delivered=tuple(whole.token_ids[:split])), rest)
            assert "".join(chunk.text for chunk in whole.chunks[:split]) + rest.text == whole.text
            assert rest.token_ids == whole.token_ids[split:]
            assert resumed == msgspec.structs.replace(end, usage=Usage(6, len(rest.token_ids)))
            assert [chunk.finish for chunk in rest.chunks] == [None] * (len(rest.chunks) - 1) + [end.finish_reason]


@pytest.mark.parametrize("delivered", ["b", "a b c d", "a b c d e"], ids=["other words", "all of them", "more than all"])
async def test_invalid_delivered_tokens_are_refused(delivered: str) -> None:
    async with echo.opened(0, 32, Watch()) as backend:
        words = Reader()
        await backend.generate(job(delivered), words)
        with pytest.raises(errors.BadRequest, match="delivered"):
            await backend.generate(replace(job("a b c d"), delivered=tuple(words.token_ids)), Reader())


async def test_all_echo_workers_give_the_same_tokens() -> None:
    async with echo.opened(0, 32, Watch()) as one, echo.opened(5, 1, Watch()) as other:
        assert one.models()[0].digest == other.models()[0].digest != ""


async def test_batch_answers_run_in_the_slots_that_live_ones_leave() -> None:
    watch, live, batch, prompt = Watch(), Reader(), [Reader() for _ in range(3)], " ".join("b" * 60)
    async with echo.opened(1, 32, watch, slots=2) as backend, asyncio.TaskGroup() as tasks:
        for reader in batch:
            tasks.create_task(backend.generate(replace(job(prompt), is_batch=True), reader))
        await until(lambda: len(batch[0].chunks) > 1)
        status = backend.models()[0]
        assert (status.running, status.queued, status.batch_busy, status.yields) == (0, 0, 3, True)
        assert not batch[2].chunks, "the third waits for a slot"
        first = tasks.create_task(backend.generate(job(" ".join("l" * 20)), live))
        await asyncio.sleep(0)
        seen = len(batch[1].chunks)
        await until(lambda: len(live.chunks) > 4)
        assert len(batch[1].chunks) <= seen + 1, "the younger one has made way"
        await first
    assert [reader.text for reader in batch] == [prompt] * 3
    assert watch.preemptions == 1
