"""Decides whether coding agents can work with a model, and says what to change otherwise. Pure."""

from collections.abc import Collection

from shared.types import Ability

#: Of a slot, for the prompt and the answer. Claude Code begins with 76 to 127 KB, which are up to 30,000 tokens.
CONTEXT_TOKENS = 65_536


def find_shortfall(context_tokens: int, abilities: Collection[str], *, is_upstream: bool, can_have_context: bool) -> str:
    """Return what a model that generates text lacks and what to change; empty if it has the context and tools.

    ``context_tokens`` is 0 if unknown. ``can_have_context``: it would have the context if its worker loaded it for agents."""
    where = "for its server" if is_upstream else "in models.yaml"
    shortfalls = []
    if not context_tokens:
        shortfalls.append(f"Its context is unknown, and agents need {CONTEXT_TOKENS:,} tokens: set `context` {where}.")
    elif context_tokens < CONTEXT_TOKENS:
        if can_have_context:
            change = "load it with `aicli models load --for agents`, or set `for: agents` in models.yaml"
        elif is_upstream:
            change = "start its server with a longer context"
        else:
            change = "even for agents it would be too short here. Raise `context` if it is set, or use another model or more memory"
        shortfalls.append(f"Its context has {context_tokens:,} tokens, and agents need {CONTEXT_TOKENS:,}: {change}.")
    if Ability.TOOLS not in abilities:
        shortfalls.append(f"It doesn't say that it can call tools: if it can, set `tools` to true {where}.")
    return " ".join(shortfalls)
