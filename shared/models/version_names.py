"""Names of versions: ``llama3``, ``llama3@7``, ``llama3@canary``, ``llama3@sha256:…``. Pure."""

import re
from dataclasses import dataclass

from shared import errors
from shared.types import ModelName

#: What ``llama3`` without more means.
STABLE = "stable"
CANARY = "canary"
CHANNEL_PATTERN = r"[a-z](?:[a-z0-9-]{0,30}[a-z0-9])?"
MAX_NAME_CHARACTERS = 80
#: Parts start with a letter or digit, so none is `..`.
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._:+-]*(?:/[A-Za-z0-9][A-Za-z0-9._:+-]*)*"
MAX_VERSION = 2**31 - 1
DIGEST_PATTERN = r"sha256:[0-9a-f]{64}"

_NAME, _CHANNEL, _DIGEST = re.compile(NAME_PATTERN), re.compile(CHANNEL_PATTERN), re.compile(DIGEST_PATTERN)
_NUMBER = re.compile("[1-9][0-9]{0,9}")


@dataclass(frozen=True, slots=True)
class VersionName:
    """Exactly one of the three that say which version is set."""

    model: ModelName
    version: int | None = None
    channel: str | None = None
    #: With `sha256:`.
    digest: str | None = None

    def __str__(self) -> str:
        return f"{self.model}@{self.version or self.channel or self.digest}"


def check_model(text: str) -> ModelName:
    """Raise BadRequest if a model can't have this name."""
    if len(text) > MAX_NAME_CHARACTERS or not _NAME.fullmatch(text):
        raise errors.BadRequest(
            f"{text[:MAX_NAME_CHARACTERS]!r} can't be the name of a model: it has up to {MAX_NAME_CHARACTERS} letters, digits and ._:+-/",
            hint="start it and each part behind / with a letter or digit",
        )
    return ModelName(text)


def check_channel(text: str) -> str:
    """Raise BadRequest if a channel can't have this name."""
    if not _CHANNEL.fullmatch(text):
        raise errors.BadRequest(
            f"{text[:40]!r} can't be the name of a channel: it has up to 32 small letters, digits and -, and starts with a letter",
            hint=f"use {STABLE} or {CANARY}",
        )
    return text


def strip_version(name: ModelName) -> ModelName:
    return ModelName(name.partition("@")[0])


def parse(text: str) -> VersionName:
    """Raises BadRequest."""
    name, at, which = text.partition("@")
    model = check_model(name)
    if not at:
        return VersionName(model, channel=STABLE)
    if _DIGEST.fullmatch(which):
        return VersionName(model, digest=which)
    if not which[:1].isdigit():
        return VersionName(model, channel=check_channel(which))
    if not _NUMBER.fullmatch(which) or int(which) > MAX_VERSION:
        raise errors.BadRequest(f"{which[:40]!r} is no version", hint=f"write {model}@7, {model}@{CANARY} or {model}@sha256:…")
    return VersionName(model, version=int(which))
