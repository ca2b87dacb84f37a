"""Decides whether coding agents can work with a model, and says what is known of that. Pure."""

#: Of a slot, for the prompt and the answer. Claude Code begins with 76 to 127 KB, which are up to 30,000 tokens.
CONTEXT_TOKENS = 65_536
#: The scripted calls of `aicli models check`, and how many of them a model must get right.
SCRIPTED_CALLS = 50
MIN_RIGHT_CALLS = 45


def are_met(context_tokens: int, right_calls: int | None) -> bool:
    """``context_tokens`` is 0 if unknown, and ``right_calls`` None if nobody has checked the model."""
    return context_tokens >= CONTEXT_TOKENS and right_calls is not None and right_calls >= MIN_RIGHT_CALLS


def describe(context_tokens: int, right_calls: int | None, *, can_have_context: bool) -> str:
    """Say what is known of a model that generates text. ``can_have_context``: its worker can load it for agents."""
    tools = "tools not checked" if right_calls is None else f"tools {right_calls} of {SCRIPTED_CALLS}"
    if context_tokens >= CONTEXT_TOKENS:
        return tools
    context = f"context {context_tokens:,} of {CONTEXT_TOKENS:,}" if context_tokens else "context unknown"
    return f"{tools}, {context}{' until it is loaded for agents' if can_have_context else ''}"
