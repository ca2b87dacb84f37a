"""All checks of Anthropic's Python client."""

from collections.abc import Iterable
from typing import get_args

from anthropic.types import message_create_params as plain
from anthropic.types.beta import BetaMessage, BetaRawContentBlockDelta, BetaStopReason, BetaUsage
from anthropic.types.beta import message_create_params as beta_params

from checks.anthropic import answers, batches, beta, content  # noqa: F401 - it adds its checks
from checks.anthropic.client import checks, name_fields

#: Fields whose values are ignored or refused whole.
WHOLE = {
    "billing_policy", "block_binding", "cache_control", "caller", "citations", "compaction", "container", "context_management",
    "diagnostics", "fallback_credit_token", "fallbacks", "input_schema", "mcp_servers", "metadata", "task_budget", "tool",
}  # fmt: skip
BLOCKS = {f"messages.content[{kind}]" for kind in (*content.SERVER_BLOCKS, *beta.BLOCKS, "compaction", "container_upload")}


def is_whole(name: str) -> bool:
    """Return whether the check of a name covers what is below it."""
    is_dropped = name.startswith("tools[") and name != "tools[custom]"
    # What a result or a document contains is what a message contains.
    is_nested = name.startswith(("messages.content.content", "messages.content.source.content"))
    return is_dropped or is_nested or name in BLOCKS or name.rpartition(".")[2] in WHOLE


def names(params: object) -> list[str]:
    return list(dict.fromkeys(name_fields(params, is_whole)))


def ensure_new(api: str, found: Iterable[str], before: Iterable[str]) -> None:
    """Ensure that there are checks of what only the beta has."""
    checks.ensure_named(api, [name for name in found if name not in set(before)])


checks.ensure_named("create", names(plain.MessageCreateParamsBase))
ensure_new("beta", names(beta_params.MessageCreateParamsBase), names(plain.MessageCreateParamsBase))
ensure_new("beta.Message", BetaMessage.model_fields, answers.Message.model_fields)
ensure_new("beta.Usage", BetaUsage.model_fields, answers.Usage.model_fields)
ensure_new("beta.StopReason", get_args(BetaStopReason), get_args(answers.StopReason))
ensure_new("beta.delta", answers.kinds(BetaRawContentBlockDelta), answers.kinds(answers.RawContentBlockDelta))
checks.run({**content.REFUSED, **beta.REFUSED})
