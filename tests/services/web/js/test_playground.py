"""The chat page in a real browser: what users type, see, hear and stop, and what the server gets."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.acceptance.chromium import Browser, Page
from tests.services.gateway.images import pictures
from tests.services.web.js import axe
from tests.services.web.js.playground_page import playground
from tests.services.web.js.site import PATIENCE_SECONDS, ReceivedRequest, Site, key, opened, press, wait_for, write

pytestmark = pytest.mark.asyncio(loop_scope="module")

USAGE = {"prompt_tokens": 1200, "completion_tokens": 34, "cost": "0.0012", "tokens_per_second": 41.26}
PICTURE = pictures.png(1, 1)
LAST = "[...document.querySelectorAll('[data-chat-message=answer]')].at(-1)"


@dataclass
class Answers:
    """Queues the questions; the test writes each answer, and sets ``over`` to end it."""

    questions: asyncio.Queue[ReceivedRequest] = field(default_factory=asyncio.Queue)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    numbers: int = 0

    async def __call__(self, page_request: ReceivedRequest) -> None:
        self.over.clear()
        self.left.clear()
        self.numbers += 1
        await page_request.begin()
        self.questions.put_nowait(page_request)
        async with asyncio.TaskGroup() as tasks:
            over = tasks.create_task(self.over.wait())
            gone = tasks.create_task(page_request.gone())
            await asyncio.wait((over, gone), return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                self.left.set()
            else:
                await page_request.end()
            over.cancel()
            gone.cancel()

    async def next(self) -> ReceivedRequest:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.questions.get()


@dataclass
class Chat:
    page: Page
    answers: Answers
    site: Site
    feedback: list[ReceivedRequest]

    async def send(self, text: str) -> ReceivedRequest:
        await self.page.evaluate("document.getElementById('message').focus()")
        await write(self.page, text)
        await key(self.page, "Enter", text="\r")
        return await self.answers.next()

    async def answer(self, page_request: ReceivedRequest, *pieces: str, usage: bool = True) -> None:
        """Send the whole answer and end it."""
        for piece in pieces:
            await page_request.event({"text": piece}, "chunk")
        if usage:
            await page_request.event(USAGE | {"request_id": f"req_{self.answers.numbers}"}, "usage")
        self.answers.over.set()
        await self.state("ready")

    async def state(self, wanted: str) -> None:
        await wait_for(self.page, f"document.querySelector('[data-playground]').dataset.chatState === '{wanted}'")

    async def part(self, name: str) -> str:
        """Return the text of a part of the last answer; empty if it is hidden."""
        found = f"{LAST}.querySelector('[data-chat={name}]')"
        return str(await self.page.evaluate(f"{found}.hidden ? '' : {found}.textContent"))


@asynccontextmanager
async def chatting(chrome: Browser, *, dark: bool = False, width: int = 1280) -> AsyncIterator[Chat]:
    site, answers, feedback = Site(), Answers(), list[ReceivedRequest]()

    async def rate(page_request: ReceivedRequest) -> None:
        feedback.append(page_request)
        status = 204 if len(feedback) < 3 else 503
        await page_request.answer(status, "", "application/json")

    site.show(playground(), "playground", "copy", "dialog")
    site.answers |= {"/playground/answer": answers, "/playground/feedback": rate}
    async with opened(chrome, site, dark=dark, width=width) as page:
        await page.goto(f"{site.origin}/")
        await wait_for(page, "document.querySelector('[data-chat-state]')")
        yield Chat(page, answers, site, feedback)


async def test_answer_is_rendered_as_markdown_while_it_streams(chrome: Browser) -> None:
    async with chatting(chrome) as chat:
        await chat.page.evaluate("document.querySelector('details').open = true")
        await chat.page.evaluate(
            "for (const [name, value] of Object.entries("
            "{model: 'large', temperature: ' 0,5 ', max_tokens: '64', system: ' Be brief '}))"
            " document.querySelector(`[name=${name}]`).value = value"
        )
        page_request = await chat.send("What is *this*?")
        assert page_request.headers["x-form-token"] == "form-token"
        assert page_request.sent == {
            "model": "large",
            "messages": [{"role": "user", "content": "What is *this*?"}],
            "temperature": 0.5,
            "max_tokens": 64,
            "system": "Be brief",
        }
        await page_request.event({"message": "The model is loading, 5 s"}, "waiting")
        await wait_for(chat.page, f"{LAST}.querySelector('[data-chat=waiting]').textContent.includes('loading')")
        await page_request.event({"text": "It is **bo"}, "chunk")
        await wait_for(chat.page, f"{LAST}.querySelector('[data-chat=text]').textContent === 'It is **bo'")
        assert await chat.part("waiting") == ""
        # Screen readers do not announce every piece.
        assert await chat.page.evaluate("document.querySelector('[data-chat=announcement]').textContent") == ""
        await chat.answer(page_request, "ld** <b>x</b>", "\n\n```py\nx\n```")
        assert await chat.page.evaluate(f"{LAST}.querySelector('strong').textContent") == "bold"
        assert "<b>x</b>" in await chat.part("text")
        assert await chat.part("usage") == "1,200 + 34 tokens · 41.3 tokens/s · 0.0012 credits"
        assert "It is bold" in await chat.page.evaluate("document.querySelector('[data-chat=announcement]').textContent")
        # The prompt is shown as typed, and the next one includes the whole chat.
        assert await chat.page.evaluate("document.querySelector('.chat-question').textContent") == "What is *this*?"
        page_request = await chat.send("And?")
        assert [message["role"] for message in page_request.sent["messages"]] == ["user", "assistant", "user"]
        await chat.answer(page_request, "So.")


async def test_thoughts_are_open_while_the_model_thinks(chrome: Browser) -> None:
    async with chatting(chrome) as chat:
        await chat.page.evaluate("document.querySelector('[name=reasoning_effort]').value = 'low'")
        page_request = await chat.send("Why?")
        assert page_request.sent["reasoning_effort"] == "low"
        thoughts = f"{LAST}.querySelector('[data-chat=thoughts]')"
        assert await chat.page.evaluate(f"{thoughts}.hidden") is True
        await page_request.event({"text": "Let me "}, "thought")
        await page_request.event({"text": "<b>think</b>."}, "thought")
        await wait_for(chat.page, f"{LAST}.querySelector('[data-chat=thought]').textContent === 'Let me <b>think</b>.'")
        assert await chat.page.evaluate(f"[{thoughts}.open, {thoughts}.hidden]") == [True, False]
        await page_request.event({"text": "Because"}, "chunk")
        await wait_for(chat.page, f"{thoughts}.open === false")
        # Thoughts that the reader opens again stay open.
        await press(chat.page, "[data-chat=thoughts] summary")
        await chat.answer(page_request, " so.")
        assert await chat.page.evaluate(f"{thoughts}.open") is True
        assert await chat.part("text") == "Because so."
        assert await chat.page.evaluate("document.querySelector('[data-chat=announcement]').textContent") == "Because so."
        page_request = await chat.send("And?")
        assert page_request.sent["messages"][1] == {"role": "assistant", "content": "Because so.", "reasoning": "Let me <b>think</b>."}
        await chat.answer(page_request, "So.")
        assert await chat.page.evaluate(f"{thoughts}.hidden") is True


def a_file(name: str, kind: str = "image/png", *, size: int = 0) -> str:
    """Return a JavaScript expression that creates a file of this size, or a picture if ``size`` is 0."""
    data = (
        f"new Uint8Array({size})" if size else f"Uint8Array.from(atob('{base64.b64encode(PICTURE).decode()}'), each => each.charCodeAt())"
    )
    return f"new File([{data}], '{name}', {{type: '{kind}'}})"


async def give(chat: Chat, way: str, *files: str, text: str = "") -> None:
    """Paste or drop files."""
    made = "const data = new DataTransfer();" + "".join(f"data.items.add({each});" for each in files)
    made += f"for (const kind of ['text/plain', 'text/html']) data.setData(kind, '{text}');" if text else ""
    target, event = (
        ("getElementById('message')", "new ClipboardEvent('paste', {clipboardData: data, bubbles: true})")
        if way == "paste"
        else ("body", "new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})")
    )
    await chat.page.evaluate(f"(() => {{ {made} document.{target}.dispatchEvent({event}) }})()")


TRAY = "[...document.querySelectorAll('[data-chat=images] img')]"
IMAGE_PROBLEM = "document.querySelector('[data-chat=image-problem]').textContent"


async def choose(chat: Chat, *paths: Path) -> None:
    """Choose files with the button; a browser without a window can't show its dialog."""
    await chat.page.evaluate("document.querySelector('[data-chat=files]').click = () => { window.asked = true }")
    await press(chat.page, "[data-chat-act=attach]")
    assert await chat.page.evaluate("window.asked") is True
    found = await chat.page.send("Runtime.evaluate", expression="document.querySelector('[data-chat=files]')")
    await chat.page.send("DOM.setFileInputFiles", files=[str(path) for path in paths], objectId=found["result"]["objectId"])


async def test_images_of_any_way_are_sent_with_the_question(chrome: Browser, tmp_path: Path) -> None:
    data = base64.b64encode(PICTURE).decode()
    async with chatting(chrome) as chat:
        for way in ("paste", "drop", "choose"):
            if way == "choose":
                for name in ("cat.png", "dog.png"):
                    (tmp_path / name).write_bytes(PICTURE)
                await choose(chat, tmp_path / "cat.png", tmp_path / "dog.png")
            else:
                await give(chat, way, a_file("cat.png"), a_file("dog.png"))
            await wait_for(chat.page, f"{TRAY}.map(each => each.alt).join() === 'cat.png,dog.png'")
            await wait_for(chat.page, f"{TRAY}.every(each => each.naturalWidth === 1)")
            assert await chat.page.evaluate("document.querySelector('[data-chat=announcement]').textContent") == "Images: 2"
            page_request = await chat.send("What is it?")
            assert page_request.sent["messages"] == [{"role": "user", "content": "What is it?", "images": [data, data]}]
            await chat.answer(page_request, "A cat.")
            assert await chat.page.evaluate(f"{TRAY}.length") == 0
            shown = await chat.page.evaluate("[...document.querySelectorAll('.chat-question img')].map(each => each.alt)")
            assert shown == ["cat.png", "dog.png"]
            assert await chat.page.evaluate("document.querySelector('.chat-question').textContent") == "What is it?"
            page_request = await chat.send("Sure?")
            assert [each.get("images") for each in page_request.sent["messages"]] == [[data, data], None, None]
            await chat.answer(page_request, "Yes.")
            await press(chat.page, "[data-chat-act=code]")
            sample = await chat.page.evaluate("document.querySelector('[data-chat=sample-curl]').textContent")
            assert "data:image/png;base64,<cat.png>" in sample
            await key(chat.page, "Escape")
            await press(chat.page, "[data-chat-act=clear]")


async def test_image_can_be_removed_by_the_keyboard(chrome: Browser) -> None:
    async with chatting(chrome) as chat:
        await give(chat, "paste", a_file("cat.png"), a_file("dog.png"))
        await wait_for(chat.page, f"{TRAY}.length === 2")
        buttons = "[...document.querySelectorAll('[data-chat-act=detach]')]"
        assert await chat.page.evaluate(f"{buttons}.map(each => each.ariaLabel)") == ["Remove cat.png", "Remove dog.png"]
        await chat.page.evaluate(f"{buttons}[0].focus()")
        await key(chat.page, "Enter", text="\r")
        assert await chat.page.evaluate(
            "[document.activeElement.ariaLabel, document.querySelector('[data-chat=announcement]').textContent]"
        ) == [
            "Remove dog.png",
            "Images: 1",
        ]
        await key(chat.page, "Enter", text="\r")
        assert await chat.page.evaluate("document.activeElement.id") == "message"
        assert await chat.page.evaluate("document.querySelector('[data-chat=images]').hidden") is True
        await give(chat, "paste", a_file("cat.png"))
        await wait_for(chat.page, f"{TRAY}.length === 1")
        await press(chat.page, "[data-chat-act=clear]")
        page_request = await chat.send("hi")
        assert page_request.sent["messages"] == [{"role": "user", "content": "hi"}]
        await chat.answer(page_request, "hi")


async def test_refused_image_says_why_and_keeps_the_others(chrome: Browser) -> None:
    async with chatting(chrome) as chat:
        await give(chat, "paste", a_file("cat.png"))
        for file, problem in (
            (a_file("photo.heic", "image/heic"), "photo.heic is not a JPEG, PNG, WebP or GIF."),
            (a_file("noise.png", size=100), "noise.png can’t be read as an image."),
            (a_file("big.png", size=12 << 20), "big.png is too large: all images of a chat together can have at most 12 MiB."),
        ):
            await give(chat, "drop", file)
            await wait_for(chat.page, f"{IMAGE_PROBLEM} === '{problem}'")
            assert await chat.page.evaluate(f"{TRAY}.length") == 1
        await give(chat, "paste", *[a_file("cat.png")] * 7)
        await wait_for(chat.page, f"{TRAY}.length === 8")
        await give(chat, "drop", a_file("ninth.png"))
        await wait_for(chat.page, f"{IMAGE_PROBLEM} === 'A chat can have at most 8 images. Start a new chat to send more.'")
        assert await chat.page.evaluate(f"{TRAY}.length") == 8


async def test_only_models_that_see_images_take_them(chrome: Browser) -> None:
    async with chatting(chrome) as chat:
        hidden = "document.querySelector('[data-chat-act=attach]').hidden"
        assert await chat.page.evaluate(hidden) is False
        await give(chat, "paste", a_file("cat.png"))
        await wait_for(chat.page, f"{TRAY}.length === 1")
        switch = "(() => { const found = document.querySelector('[name=model]'); found.value = '%s';"
        switch += " found.dispatchEvent(new Event('input', {bubbles: true})) })()"
        await chat.page.evaluate(switch % "large")
        assert await chat.page.evaluate(hidden) is True
        await chat.page.evaluate("document.getElementById('message').focus()")
        await write(chat.page, "What?")
        await key(chat.page, "Enter", text="\r")
        await wait_for(chat.page, f"{IMAGE_PROBLEM} === 'large doesn’t support images. Choose another model, or send only text.'")
        assert chat.answers.numbers == 0
        await give(chat, "drop", a_file("dog.png"))
        assert await chat.page.evaluate(f"{TRAY}.length") == 1
        await chat.page.evaluate(switch % "small")
        await key(chat.page, "Enter", text="\r")
        page_request = await chat.answers.next()
        assert len(page_request.sent["messages"][0]["images"]) == 1
        await chat.answer(page_request, "A cat.")
        # Text copied from an office program comes with a picture of it.
        await give(chat, "paste", a_file("cells.png"), text="1 2")
        page_request = await chat.send("And?")
        assert "images" not in page_request.sent["messages"][2]
        await chat.answer(page_request, "So.")


async def test_enter_sends_and_shift_enter_does_not(chrome: Browser) -> None:
    async with chatting(chrome) as chat:
        await chat.page.evaluate("document.getElementById('message').focus()")
        await key(chat.page, "Enter", text="\r")
        await write(chat.page, "one")
        await key(chat.page, "Enter", shift=True, text="\r")
        await write(chat.page, "two")
        assert chat.answers.questions.empty()
        await key(chat.page, "Enter", text="\r")
        page_request = await chat.answers.next()
        assert page_request.sent["messages"][0]["content"] == "one\ntwo"
        # Enter sends nothing while an answer is being written, and the typed text stays.
        await write(chat.page, "next")
        await key(chat.page, "Enter", text="\r")
        assert await chat.page.evaluate("document.getElementById('message').value") == "next"
        await chat.answer(page_request, "ok")
        assert chat.answers.numbers == 1


async def test_stop_closes_the_connection_and_keeps_the_text(chrome: Browser) -> None:
    async with chatting(chrome) as chat:
        for way in ("button", "Escape"):
            page_request = await chat.send("Tell me everything")
            await page_request.event({"text": "Once upon"}, "chunk")
            await wait_for(chat.page, f"{LAST}.querySelector('[data-chat=text]').textContent === 'Once upon'")
            if way == "button":
                await press(chat.page, "[data-chat-act=stop]")
            else:
                await key(chat.page, "Escape")
            async with asyncio.timeout(PATIENCE_SECONDS):
                await chat.answers.left.wait()
            await chat.state("ready")
            assert await chat.part("text") == "Once upon"
            assert await chat.part("usage") == "Stopped."
            assert await chat.part("problem") == ""
            assert await chat.page.evaluate("document.activeElement.id") == "message"
            page_request = await chat.send("Go on")
            assert [message["content"] for message in page_request.sent["messages"]] == ["Tell me everything", "Once upon", "Go on"]
            await chat.answer(page_request, "a time")
            await press(chat.page, "[data-chat-act=clear]")


async def test_answer_can_be_regenerated_and_a_chat_restarted(chrome: Browser) -> None:
    async with chatting(chrome) as chat:
        await chat.answer(await chat.send("q"), "first")
        await press(chat.page, "[data-chat-act=regenerate]")
        page_request = await chat.answers.next()
        assert page_request.sent["messages"] == [{"role": "user", "content": "q"}]
        await chat.answer(page_request, "second")
        assert await chat.page.evaluate(
            "[...document.querySelectorAll('[data-chat-message]')].map(each => each.querySelector('p') ? 1 : 0)"
        ) == [0, 1]
        assert await chat.part("text") == "second"
        page_request = await chat.send("more")
        # Clear the chat in the middle of an answer: the answer ends, and no more of it appears.
        await press(chat.page, "[data-chat-act=clear]")
        async with asyncio.timeout(PATIENCE_SECONDS):
            await chat.answers.left.wait()
        await chat.state("empty")
        assert await chat.page.evaluate("document.querySelectorAll('[data-chat-message]').length") == 0
        assert await chat.page.evaluate("document.querySelector('[data-chat=empty]').hidden") is False
        page_request = await chat.send("new")
        assert [message["content"] for message in page_request.sent["messages"]] == ["new"]
        await chat.answer(page_request, "fresh")


async def test_new_chat_starts_before_the_old_answer_ends(chrome: Browser) -> None:
    async with chatting(chrome) as chat:
        page_request = await chat.send("old")
        await page_request.event({"text": "old"}, "chunk")
        await wait_for(chat.page, f"{LAST}.querySelector('[data-chat=text]').textContent === 'old'")
        await chat.page.evaluate(
            "document.querySelector('[data-chat-act=clear]').click();"
            " document.getElementById('message').value = 'new'; document.getElementById('chat').requestSubmit()"
        )
        page_request = await chat.answers.next()
        await page_request.event({"text": "fresh"}, "chunk")
        await wait_for(chat.page, f"{LAST}.querySelector('[data-chat=text]').textContent === 'fresh'")
        assert await chat.page.evaluate("document.querySelector('[data-playground]').dataset.chatState") == "writing"
        assert await chat.part("usage") == ""
        await chat.answer(page_request, " text")
        assert await chat.part("text") == "fresh text"


async def test_endless_event_is_aborted(chrome: Browser) -> None:
    async with chatting(chrome) as chat:
        page_request = await chat.send("endless")
        await page_request.write("data: " + "x" * 1_100_000)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await chat.answers.left.wait()
        await chat.state("ready")
        assert (await chat.part("problem")).startswith("The server rejected the request.")


async def test_every_error_says_what_to_do_and_keeps_the_text(chrome: Browser) -> None:
    async with chatting(chrome) as chat:
        page_request = await chat.send("one")
        await page_request.event({"text": "half an"}, "chunk")
        await page_request.event({"code": "worker_lost", "message": "The worker went away.", "hint": "Send it again."}, "problem")
        await chat.answer(page_request, usage=False)
        assert await chat.part("text") == "half an"
        assert await chat.part("problem") == "The worker went away. Send it again."
        page_request = await chat.send("none")
        await page_request.event({"code": "no_worker", "message": "No worker.", "hint": ""}, "problem")
        await chat.answer(page_request, usage=False)
        # There is nothing to copy or rate, but the user can regenerate the answer.
        acts = "[...document.querySelectorAll('[data-chat-message]:last-child [data-chat-act]')].map(each => each.hidden)"
        assert await chat.page.evaluate(acts) == [True, False, True, True]
        page_request = await chat.send("two")
        # The stream ends without usage.
        await chat.answer(page_request, "cut o", usage=False)
        assert (await chat.part("problem")).startswith("The answer was interrupted.")

        async def refuse(page_request: ReceivedRequest) -> None:
            body = '{"error": {"code": "rate_limited", "message": "Too many requests.", "hint": "Wait 20 s."}}'
            await page_request.answer(429, body, "application/json")

        chat.site.answers["/playground/answer"] = refuse
        await chat.page.evaluate("document.getElementById('message').focus()")
        await write(chat.page, "three")
        await key(chat.page, "Enter", text="\r")
        await wait_for(chat.page, f"{LAST}.querySelector('[data-chat=problem]').textContent === 'Too many requests. Wait 20 s.'")

        async def to_login(page_request: ReceivedRequest) -> None:
            await page_request.begin(303, location="/login")
            await page_request.end()

        chat.site.answers["/playground/answer"] = to_login
        await write(chat.page, "four")
        await key(chat.page, "Enter", text="\r")
        await wait_for(chat.page, f"{LAST}.querySelector('[data-chat=problem]').textContent.startsWith('You’re signed out.')")
        assert await chat.page.evaluate("document.querySelector('[data-chat=announcement]').textContent") == "You’re signed out."
        chat.page.problems[:] = [problem for problem in chat.page.problems if "429" not in problem]


async def test_lost_server_is_reported(chrome: Browser) -> None:
    async with chatting(chrome) as chat:
        await chat.page.send("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
        await chat.page.evaluate("document.getElementById('message').focus()")
        await write(chat.page, "hello?")
        await key(chat.page, "Enter", text="\r")
        await wait_for(
            chat.page, f"{LAST}?.querySelector('[data-chat=problem]').textContent.startsWith('The connection to aimesh was lost.')"
        )
        chat.page.problems[:] = [problem for problem in chat.page.problems if "ERR_INTERNET_DISCONNECTED" not in problem]


async def test_rating_goes_to_its_answer(chrome: Browser) -> None:
    async with chatting(chrome) as chat:
        await chat.answer(await chat.send("one"), "1")
        await chat.answer(await chat.send("two"), "2")
        pressed = "[...document.querySelectorAll('[data-chat-act=up]')].map(each => each.ariaPressed).join()"
        await press(chat.page, "[data-chat-act=up]")
        await wait_for(chat.page, "document.querySelector('[data-chat=announcement]').textContent === 'Rating saved.'")
        assert chat.feedback[0].sent == {"request_id": "req_1", "rating": "up"}
        assert chat.feedback[0].headers["x-form-token"] == "form-token"
        assert await chat.page.evaluate(pressed) == "true,false"
        await press(chat.page, "[data-chat-message]:last-child [data-chat-act=down]")
        await wait_for(chat.page, f"{LAST}.querySelector('[data-chat-act=down]').ariaPressed === 'true'")
        # The server refuses the third rating: the button returns to the stored rating, and the page says so.
        await press(chat.page, "[data-chat-act=down]")
        await wait_for(chat.page, "document.querySelector('[data-chat=announcement]').textContent === 'The rating couldn’t be saved.'")
        assert await chat.page.evaluate(pressed) == "true,false"
        assert [page_request.sent["request_id"] for page_request in chat.feedback] == ["req_1", "req_2", "req_1"]
        chat.page.problems[:] = [problem for problem in chat.page.problems if "503" not in problem]


async def test_stopped_answer_can_be_rated_if_it_has_text(chrome: Browser) -> None:
    async with chatting(chrome) as chat:
        hidden = f"[...{LAST}.querySelectorAll('[data-chat-act=up], [data-chat-act=down]')].map(each => each.hidden)"
        page_request = await chat.send("Tell me nothing")
        await page_request.event({"request_id": "req_0"}, "began")
        await page_request.event({"message": "The model is loading"}, "waiting")
        await wait_for(chat.page, f"{LAST}.querySelector('[data-chat=waiting]').textContent.includes('loading')")
        await press(chat.page, "[data-chat-act=stop]")
        await chat.state("ready")
        assert await chat.page.evaluate(hidden) == [True, True]
        page_request = await chat.send("Tell me everything")
        await page_request.event({"request_id": "req_1"}, "began")
        await page_request.event({"text": "Once upon"}, "chunk")
        await wait_for(chat.page, f"{LAST}.querySelector('[data-chat=text]').textContent === 'Once upon'")
        assert await chat.page.evaluate(hidden) == [True, True]
        await press(chat.page, "[data-chat-act=stop]")
        await chat.state("ready")
        assert await chat.page.evaluate(hidden) == [False, False]
        await press(chat.page, "[data-chat-message]:last-child [data-chat-act=down]")
        await wait_for(chat.page, "document.querySelector('[data-chat=announcement]').textContent === 'Rating saved.'")
        assert [page_request.sent for page_request in chat.feedback] == [{"request_id": "req_1", "rating": "down"}]


async def test_invalid_parameter_is_reported_and_nothing_is_sent(chrome: Browser) -> None:
    async with chatting(chrome) as chat:
        await chat.answer(await chat.send("one"), "answer")
        await chat.page.evaluate("document.querySelector('[name=temperature]').value = 'warm'")
        # The field is collapsed, where a browser would report nothing.
        assert not await chat.page.evaluate("document.querySelector('details').open")
        await chat.page.evaluate("document.getElementById('message').focus()")
        await write(chat.page, "two")
        await key(chat.page, "Enter", text="\r")
        await wait_for(chat.page, "document.activeElement.name === 'temperature' && document.querySelector('details').open")
        await press(chat.page, "[data-chat-act=regenerate]")
        await wait_for(chat.page, "document.activeElement.name === 'temperature'")
        assert chat.answers.numbers == 1
        await chat.page.evaluate("document.querySelector('[name=temperature]').value = ''")
        await press(chat.page, "[data-chat=send]")
        assert (await chat.answers.next()).sent["messages"][-1]["content"] == "two"


async def test_code_sample_uses_the_current_settings(chrome: Browser) -> None:
    async with chatting(chrome) as chat:
        await chat.answer(await chat.send("It's <b>"), "answer")
        await chat.page.evaluate("document.querySelector('[name=temperature]').value = '0.7'")
        await press(chat.page, "[data-chat-act=code]")
        await wait_for(chat.page, "document.querySelector('dialog').open")
        codes = await chat.page.evaluate("[...document.querySelectorAll('dialog code')].map(each => each.textContent)")
        assert len(codes) == 4
        for code in codes:
            assert "small" in code
            assert "0.7" in code
        assert "https://ai.example/v1/chat/completions" in codes[0]
        # The sample requests the shown answer, so it ends with the question.
        assert "answer" not in codes[1].partition("messages=")[2].partition("]")[0]
        assert [each for each in await axe.violations(chat.page) if each.is_serious] == []
        # Escape closes the dialog.
        await key(chat.page, "Escape")
        await wait_for(chat.page, "!document.querySelector('dialog').open")


async def test_page_scrolls_to_the_end_until_the_reader_scrolls_up(chrome: Browser) -> None:
    async with chatting(chrome) as chat:
        distance = "(box => box.scrollHeight - box.scrollTop - box.clientHeight)(document.querySelector('[data-chat=log]'))"
        page_request = await chat.send("long")
        await page_request.event({"text": "line\n\n" * 100}, "chunk")
        await wait_for(chat.page, f"{LAST}.querySelectorAll('p').length > 100 && {distance} <= 1")
        assert await chat.page.evaluate("document.querySelector('[data-chat=latest]').hidden")
        await chat.page.evaluate("document.querySelector('[data-chat=log]').scrollTop = 300")
        await wait_for(chat.page, "!document.querySelector('[data-chat=latest]').hidden")
        await page_request.event({"text": "more\n\n" * 100}, "chunk")
        await wait_for(chat.page, f"{LAST}.querySelectorAll('p').length > 200")
        assert await chat.page.evaluate("document.querySelector('[data-chat=log]').scrollTop") == 300
        await press(chat.page, "[data-chat=latest]")
        await page_request.event({"text": "end\n\n" * 50}, "chunk")
        await wait_for(chat.page, f"{LAST}.querySelectorAll('p').length > 250 && {distance} <= 1")
        await chat.answer(page_request, "done")


@pytest.mark.nightly("pages")
async def test_page_is_accessible_and_fits_a_phone(chrome: Browser) -> None:
    for dark, width in ((False, 1280), (True, 400)):
        async with chatting(chrome, dark=dark, width=width) as chat:
            await give(chat, "paste", a_file("cat.png"))
            await wait_for(chat.page, f"{TRAY}.length === 1")
            page_request = await chat.send("q")
            await give(chat, "paste", a_file("dog.png"), a_file("mouse.heic", "image/heic"))
            await wait_for(chat.page, f"{IMAGE_PROBLEM} !== ''")
            await chat.answer(page_request, "text with `code` and [a link](https://example.org/)\n\n```\ncode\n```")
            assert await axe.violations(chat.page) == []
            assert await chat.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_answer_is_copied_as_markdown(chrome: Browser) -> None:
    async with chatting(chrome) as chat:
        await chat.page.evaluate(
            "window.copied = []; Object.defineProperty(navigator, 'clipboard', {value: {writeText: async text => { copied.push(text) }}})"
        )
        button = f"{LAST}.querySelector('[data-chat-act=copy]')"
        page_request = await chat.send("What is it?")
        await page_request.event({"text": "It is **bo"}, "chunk")
        await wait_for(chat.page, f"{LAST}.querySelector('[data-chat=text]').textContent === 'It is **bo'")
        # An unfinished answer can't be copied.
        assert await chat.page.evaluate(f"{button}.hidden")
        await chat.answer(page_request, "ld**")
        await press(chat.page, "[data-chat-act=copy]")
        await wait_for(chat.page, f"{button}.dataset.copied === 'true'")
        assert await chat.page.evaluate("copied") == ["It is **bold**"]
        # The button keeps its icon and name.
        assert await chat.page.evaluate(f"[{button}.ariaLabel, {button}.querySelectorAll('svg').length]") == ["Copy answer", 1]


async def test_parameters_in_force_are_shown_while_the_fields_are_collapsed(chrome: Browser) -> None:
    async with chatting(chrome) as chat:
        shown = "document.querySelector('[data-chat=params]').textContent"
        assert await chat.page.evaluate(shown) == "Model defaults"
        await chat.page.evaluate("document.querySelector('details').open = true")
        for name, text in (("temperature", " 0,5 "), ("seed", "7"), ("system", "Be brief")):
            await chat.page.evaluate(f"document.querySelector('[name={name}]').focus()")
            await write(chat.page, text)
        assert await chat.page.evaluate(shown) == "Temperature 0.5 · Seed 7 · System"
        await chat.page.evaluate(
            "for (const each of document.querySelectorAll('[name=temperature], [name=seed], [name=system]')) {"
            " each.value = ''; each.dispatchEvent(new Event('input', {bubbles: true})) }"
        )
        assert await chat.page.evaluate(shown) == "Model defaults"
