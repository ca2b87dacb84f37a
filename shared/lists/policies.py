"""The words of a policy's rules, and the list of those that apply."""

from shared.api.configuration import PolicyRule
from shared.config_documents import GuardKind
from shared.lists.columns import Column, Listing

KINDS = {
    GuardKind.SECRET: "Secrets",
    GuardKind.CARD: "Card numbers",
    GuardKind.IBAN: "IBANs",
    GuardKind.NATIONAL_ID: "National numbers",
    GuardKind.EMAIL: "Email addresses",
    GuardKind.PHONE: "Phone numbers",
    GuardKind.IP: "IP addresses",
    GuardKind.OWN: "Own patterns",
}
#: Rule -> label.
RULES = {
    "external": "External providers",
    "machines": "Machines",
    "models": "Models",
    "targets": "Target models",
    "direct_models": "Direct models",
    "max_price.input": "Maximum input price",
    "max_price.output": "Maximum output price",
    "show_targets": "Show targets",
    "store_items": "Store answer items",
    "stored_prompts": "Store prompts",
    "flex": "Flex requests",
    **{f"guard.{place}.{kind}": f"{label} in {place}s" for place in ("prompt", "answer") for kind, label in KINDS.items()},
    "guard.moderation": "Harmful texts",
}

EFFECTIVE: Listing[PolicyRule] = Listing(
    columns=(
        Column(title="Rule", show=lambda rule: RULES.get(rule.rule, rule.rule)),
        Column(title="Value", show=lambda rule: rule.value, wraps=True),
        Column(title="From", show=lambda rule: ", ".join(rule.levels)),
    ),
    empty="No rules.",
)
