"""All checks of openai's Python client, for the APIs that we serve."""

from checks.openai import chat_helpers, jobs, others, response_events, response_items, responses  # noqa: F401 - they add their checks
from checks.openai.client import checks

checks.run(
    {
        "audio and files": (
            "models only read text and images, and only write text",
            [
                *(
                    "chat.audio",
                    "chat.modalities",
                    "chat.messages.audio",
                    "chat.messages content input_audio",
                    "chat.messages content file",
                ),
                *(
                    "responses.input.message input_file",
                    "responses.input.message input_audio",
                    "responses.input.message input_image file_id",
                ),
                *("responses.input.function_call_output input_file",),
            ],
        ),
        "what only OpenAI stores or can read": (
            "prompts are only stored where the mesh's policy says so; send the whole conversation",
            [
                *("responses.previous_response_id", "responses.conversation", "responses.prompt"),
                *("responses.input_items()", "responses.compact()"),
                *("responses.input.compaction", "responses.input.compaction_trigger"),
            ],
        ),
        "moderation of a request": ("policies decide what is checked", ["chat.moderation", "responses.moderation"]),
    }
)
