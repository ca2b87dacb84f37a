"""All checks of langchain-openai and langchain-anthropic."""

from checks.langchain import anthropic_messages, openai_responses  # noqa: F401 - they add their checks
from checks.langchain.chat_checks import checks

checks.run(
    {
        "audio, files and images by URL": (
            "models only read text and images, and the gateway fetches nothing",
            ["ChatOpenAI audio block", "ChatOpenAI file block", "ChatAnthropic PDF block", "ChatAnthropic image URL"],
        ),
        "previous_response_id": ("prompts are never stored; send the whole conversation", ["ChatOpenAI.use_previous_response_id"]),
    }
)
