"""Guards prompts before anything else sees them."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec

from services.gateway.guard.guard_rules import GuardScan
from services.gateway.guard.guarded_text import GuardedText, GuardMatches, guard_json
from shared import errors
from shared.api.embedding import EmbeddingInput
from shared.api.generation import ChatMessage, ImagePart
from shared.config_documents import GuardAction, GuardKind

#: At most 17 ms, usually 0.2; then other requests get their turn.
_AT_ONCE = 2048


async def guard_messages(messages: Sequence[ChatMessage], scan: GuardScan, matches: GuardMatches) -> tuple[ChatMessage, ...]:
    """Return the messages as a worker may see them. Raises ContentFiltered that names the message."""
    guarded: list[ChatMessage] = []
    for position, message in enumerate(messages):
        content = await _guard_text(message.content, scan, matches, f"messages[{position}].content")
        reasoning = await _guard_text(message.reasoning, scan, matches, f"messages[{position}].reasoning")
        calls = []
        for number, call in enumerate(message.tool_calls):
            arguments, refused = await _guard_arguments(call.arguments, scan, matches)
            if refused is not None:
                raise _refusal(matches, f"messages[{position}].tool_calls[{number}]")
            calls.append(call if arguments == call.arguments else msgspec.structs.replace(call, arguments=arguments))
        images = message.images
        if content != message.content:
            # Masks change the length of the text before an image.
            images = tuple([await _moved(image, message.content, scan, len(content)) for image in images])
        guarded.append(msgspec.structs.replace(message, content=content, reasoning=reasoning, tool_calls=tuple(calls), images=images))
    return tuple(guarded)


async def _moved(image: ImagePart, content: str, scan: GuardScan, most: int) -> ImagePart:
    before = await _guard_text(content[: image.at], scan, GuardMatches(), "messages")
    return msgspec.structs.replace(image, at=min(len(before), most))


async def guard_inputs(inputs: Sequence[EmbeddingInput], scan: GuardScan, matches: GuardMatches) -> tuple[EmbeddingInput, ...]:
    """Return the texts as a worker may see them; token ids as they are. Raises ContentFiltered that names the text."""
    found: list[EmbeddingInput] = []
    for position, given in enumerate(inputs):
        found.append(await _guard_text(given, scan, matches, f"input[{position}]") if isinstance(given, str) else given)
    return tuple(found)


async def _guard_arguments(text: str, scan: GuardScan, matches: GuardMatches) -> tuple[str, GuardKind | None]:
    if len(text) <= _AT_ONCE:
        return guard_json(text, scan, matches)
    # JSON is read as a whole.
    return await asyncio.to_thread(guard_json, text, scan, matches)


async def pieces(text: str) -> AsyncIterator[str]:
    """Yield the text in pieces, and let other requests run between them."""
    for start in range(0, len(text), _AT_ONCE):
        if start:
            await asyncio.sleep(0)
        yield text[start : start + _AT_ONCE]


async def _guard_text(text: str, scan: GuardScan, matches: GuardMatches, field: str) -> str:
    guarded = GuardedText(scan, matches)
    shown = [guarded.feed(piece) async for piece in pieces(text)]
    shown.append(guarded.end())
    if guarded.refused is not None:
        raise _refusal(matches, field)
    return "".join(shown)


def _refusal(matches: GuardMatches, field: str) -> errors.ContentFiltered:
    kinds = ", ".join(dict.fromkeys(str(kind) for kind, action in matches if action is GuardAction.REFUSE))
    return errors.ContentFiltered(f"{field} contains what your policy refuses: {kinds}", hint="remove it; see `aicli policy explain`")
