"""The settings of where models are pulled from, for the worker and for `aicli models pull`."""

import re
from typing import Annotated

import msgspec

from shared.api.inference import ModelSources
from shared.config import Settings, Variable

HubUrl = Annotated[str, Variable("HF_ENDPOINT", "the Hugging Face hub or its mirror, for `aicli models pull hf:…`")]
HubToken = Annotated[str | None, Variable("HF_TOKEN", "a token for HF_ENDPOINT, for models that need one", secret=True)]
Mirrors = Annotated[
    dict[str, str],
    Variable("MODEL_MIRRORS", "mirrors for `aicli models pull`, as host=url, comma-separated: registry.ollama.ai=https://mirror.example"),
]
HUB_URL = ModelSources().hub_url


class SourceSettings(Settings, frozen=True, kw_only=True):
    hub_url: HubUrl = HUB_URL
    hub_token: HubToken = None
    mirrors: Mirrors = msgspec.field(default_factory=dict)


def redact(source: str) -> str:
    """Return what a person typed without what may hold a secret: a password, a query."""
    return re.sub("//[^/@]*@", "//", re.sub("[?#].*", "", source))
