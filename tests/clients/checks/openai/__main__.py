"""All checks of openai's Python client."""

from checks.openai import chat
from checks.openai.client import checks

checks.run(chat.REFUSED)
