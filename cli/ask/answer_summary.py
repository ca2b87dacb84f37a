"""Describes how an answer ended: its size, speed and cost, and what cut it off. Pure."""

from cli.output import printing
from shared import amounts
from shared.api.gateway import InferenceResult
from shared.types import FinishReason

#: From here on, the user should know that a conversation comes to its end.
_NEARLY_FULL = 0.75


def summarize(result: InferenceResult) -> str:
    usage = result.usage
    seconds = (result.response_time_ms - result.first_token_ms) / 1000
    # The first token arrives at the start of the measured time, so it does not count.
    speed = f", {(usage.completion_tokens - 1) / seconds:.1f} tokens/s" if seconds > 0 and usage.completion_tokens > 1 else ""
    first = f"first after {result.first_token_ms} ms"
    cost = f", {printing.counted(amounts.written(result.cost_micro), 'credit')}" if result.cost_micro else ""
    cached = ", answered from the cache" if result.cached else ""
    return f"{result.model}: {usage.prompt_tokens} + {usage.completion_tokens} tokens, {first}{speed}{cost}{cached}"


def describe_credit_limit(result: InferenceResult) -> str:
    """Return an empty string if neither credits nor a policy cut the answer off."""
    if result.finish_reason is FinishReason.CONTENT_FILTER:
        return "Your policy ended the answer before something that it refuses. See aicli policy explain."
    if result.clamped_to is None or result.finish_reason is not FinishReason.LENGTH:
        return ""
    return f"The answer was cut off after {printing.counted(result.clamped_to, 'token')}: not enough credits. See aicli usage."


def describe_limit(result: InferenceResult, context_tokens: int) -> str:
    """Return what a chat should say about an answer that was cut off, or a context that is nearly full; usually nothing.

    ``context_tokens`` is 0 if unknown.
    """
    used = result.usage.total_tokens
    if note := describe_credit_limit(result):
        return note
    if context_tokens and used >= context_tokens:
        return f"The context of {context_tokens} tokens is full. /new starts a new conversation; /model chooses a model with more."
    if result.finish_reason is FinishReason.LENGTH:
        tokens = printing.counted(result.usage.completion_tokens, "token")
        return f"The answer was cut off after {tokens}. To allow more: /set max_tokens NUMBER"
    if context_tokens and used >= _NEARLY_FULL * context_tokens:
        return f"The conversation fills {100 * used // context_tokens} % of the model's context. /new starts a new one."
    return ""
