"""Guards prompts before anything else sees them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from weakref import WeakKeyDictionary

import msgspec

from services.gateway.facts.guardrails import GuardScan
from services.gateway.guard.guarded_text import GuardedText, GuardMatches, guard_json
from shared import errors
from shared.api.embedding import EmbeddingInput
from shared.api.generation import ChatMessage, ImagePart
from shared.config_documents import GuardAction, GuardKind

#: Characters that are read at once: at most 17 ms, usually 0.2; with the policy's own patterns at most 30 ms.
_AT_ONCE, _AT_ONCE_WITH_PATTERNS = 2048, 256
#: A text takes as long as so many more characters.
_CHARACTERS_PER_TEXT = 32

#: By event loop: only the request that holds it reads next.
_next_turn: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


class Turns:
    """Lets other requests run while the texts of one request are read, however many they are, and however many requests are read."""

    def __init__(self, scan: GuardScan) -> None:
        self.at_once = _AT_ONCE_WITH_PATTERNS if scan.has_patterns else _AT_ONCE
        self._left = 0

    async def count(self, characters: int) -> None:
        """Count what is read next; wait for the next turn first if this one is over."""
        if self._left <= 0:
            async with _next_turn.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
                await asyncio.sleep(0)
            self._left = self.at_once
        self._left -= characters + _CHARACTERS_PER_TEXT

    async def pieces(self, text: str) -> AsyncIterator[str]:
        """Yield the text in pieces, each in its turn."""
        for start in range(0, len(text), self.at_once):
            piece = text[start : start + self.at_once]
            await self.count(len(piece))
            yield piece


async def guard_messages(messages: Sequence[ChatMessage], scan: GuardScan, matches: GuardMatches) -> tuple[ChatMessage, ...]:
    """Return the messages as a worker may see them. Raises ContentFiltered that names the message."""
    guarded: list[ChatMessage] = []
    turns = Turns(scan)
    for position, message in enumerate(messages):
        content = await _guard_text(message.content, scan, matches, turns, f"messages[{position}].content")
        reasoning = await _guard_text(message.reasoning, scan, matches, turns, f"messages[{position}].reasoning")
        calls = []
        for number, call in enumerate(message.tool_calls):
            arguments, refused = await _guard_arguments(call.arguments, scan, matches, turns)
            if refused is not None:
                raise _refusal(matches, f"messages[{position}].tool_calls[{number}]")
            calls.append(call if arguments == call.arguments else msgspec.structs.replace(call, arguments=arguments))
        images = message.images
        if content != message.content:
            # Masks change the length of the text before an image.
            images = tuple([await _moved(image, message.content, scan, turns, len(content)) for image in images])
        guarded.append(msgspec.structs.replace(message, content=content, reasoning=reasoning, tool_calls=tuple(calls), images=images))
    return tuple(guarded)


async def _moved(image: ImagePart, content: str, scan: GuardScan, turns: Turns, most: int) -> ImagePart:
    before = await _guard_text(content[: image.at], scan, GuardMatches(), turns, "messages")
    return msgspec.structs.replace(image, at=min(len(before), most))


async def guard_inputs(inputs: Sequence[EmbeddingInput], scan: GuardScan, matches: GuardMatches) -> tuple[EmbeddingInput, ...]:
    """Return the texts as a worker may see them; token ids as they are. Raises ContentFiltered that names the text."""
    found: list[EmbeddingInput] = []
    turns = Turns(scan)
    for position, given in enumerate(inputs):
        found.append(await _guard_text(given, scan, matches, turns, f"input[{position}]") if isinstance(given, str) else given)
    return tuple(found)


async def _guard_arguments(text: str, scan: GuardScan, matches: GuardMatches, turns: Turns) -> tuple[str, GuardKind | None]:
    if len(text) > turns.at_once:
        # JSON is read as a whole.
        return await asyncio.to_thread(guard_json, text, scan, matches)
    await turns.count(len(text))
    return guard_json(text, scan, matches)


async def _guard_text(text: str, scan: GuardScan, matches: GuardMatches, turns: Turns, field: str) -> str:
    guarded = GuardedText(scan, matches)
    shown = [guarded.feed(piece) async for piece in turns.pieces(text)]
    shown.append(guarded.end())
    if guarded.refused is not None:
        raise _refusal(matches, field)
    return "".join(shown)


def _refusal(matches: GuardMatches, field: str) -> errors.ContentFiltered:
    kinds = ", ".join(dict.fromkeys(str(kind) for kind, action in matches if action is GuardAction.REFUSE))
    return errors.ContentFiltered(f"{field} contains what your policy refuses: {kinds}", hint="remove it; see `aicli policy explain`")
