"""What the mails of webhooks say."""

from features.webhooks.notices import WebhookDisabled

NOTICES = [
    (
        WebhookDisabled("mine", "it answered 410 Gone"),
        "A webhook endpoint was disabled",
        ("mine", "410 Gone", "https://ai.example.com/settings/webhooks"),
    )
]
