"""What webhooks add."""

from shared.features import Acts, Command, Feature

FEATURE = Feature(
    commands=(
        Command(
            name="webhooks",
            section="Account",
            place="features.webhooks.cli.commands:webhooks",
            summary="Send signed events to your servers when jobs end.",
        ),
    ),
    counted_items=("delivery",),
    acts=(
        Acts(
            meaning="webhook endpoints; the target is the endpoint, the details have its URL",
            harmless=("webhook.create",),
            restricting=("webhook.change", "webhook.rotate", "webhook.delete"),
            why_not_replayed="webhook endpoints are not replayed; the restore's runbook says so",
        ),
    ),
)
