"""Lets chat models moderate: each text is a prompt, and the answer is read in the format of Llama Guard."""

from collections.abc import Awaitable, Callable

from services.inference import jobs
from services.inference.backend_interface import Sink, UncountedSink
from shared import errors
from shared.api.generation import ChatMessage, GenerationEnd, Sampling
from shared.api.inference import Chunk, Moderate, Moderated, ModerationNotice, ModerationVerdict
from shared.types import ModelName

#: `unsafe`, a line end, and the codes of all 14 categories.
VERDICT_TOKENS = 64
#: Llama Guard 3's categories, by names like OpenAI's.
CATEGORIES = {
    "S1": "violence",
    "S2": "illicit",
    "S3": "sexual/crimes",
    "S4": "sexual/minors",
    "S5": "defamation",
    "S6": "specialized-advice",
    "S7": "privacy",
    "S8": "intellectual-property",
    "S9": "illicit/weapons",
    "S10": "hate",
    "S11": "self-harm",
    "S12": "sexual",
    "S13": "elections",
    "S14": "code-abuse",
}
_VERDICT = Sampling(temperature=0.0, max_tokens=VERDICT_TOKENS)

Generate = Callable[[ModelName, tuple[ChatMessage, ...], Sampling, Sink, jobs.JobOrigin], Awaitable[GenerationEnd]]


class _VerdictSink(UncountedSink):
    """Collects an answer, and passes on what it waits for."""

    def __init__(self, send: Callable[[ModerationNotice], Awaitable[None]]) -> None:
        self._send = send
        self.text = ""

    async def send(self, item: Chunk) -> None:
        self.text += item.text
        if item.waiting:
            await self._send(ModerationNotice(item.waiting))


async def by_chat(request: Moderate, generate: Generate, send: Callable[[ModerationNotice], Awaitable[None]]) -> Moderated:
    """Ask for one verdict after the other. Raises Unavailable for an answer in another format, and what ``generate`` raises."""
    verdicts, tokens = [], 0
    for text in request.texts:
        sink = _VerdictSink(send)
        origin = jobs.JobOrigin(request=str(request.request_id))
        usage = (await generate(request.model, (ChatMessage("user", text),), _VERDICT, sink, origin)).usage
        verdicts.append(read_llama_guard(request.model, sink.text))
        tokens += usage.prompt_tokens + usage.completion_tokens
    return Moderated(tuple(verdicts), tokens)


def read_llama_guard(model: ModelName, answer: str) -> ModerationVerdict:
    """Read the first line, and the codes in the second. Raises Unavailable."""
    verdict, _, rest = answer.strip().partition("\n")
    word = verdict.strip().lower()
    if word not in ("safe", "unsafe"):
        # Not the answer itself, which may repeat the text.
        raise errors.Unavailable(f"{model} answered neither safe nor unsafe", hint="use a model with the format of Llama Guard")
    codes = {code.strip().upper() for code in rest.partition("\n")[0].split(",")} if word == "unsafe" else set[str]()
    flagged = tuple(name for code, name in CATEGORIES.items() if code in codes)
    scores = {name: float(name in flagged) for name in CATEGORIES.values()}
    return ModerationVerdict(flagged=word == "unsafe", categories=flagged, scores=scores)
