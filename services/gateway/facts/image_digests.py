"""Lets a prompt be hashed and compared by the digests of its images. Pure."""

from typing import TypeVar

import msgspec

from shared.api.generation import ChatMessage

Content = TypeVar("Content")


def without_image_data(content: Content) -> Content:
    """Return a message with only the digests of its images; anything else unchanged."""
    if not isinstance(content, ChatMessage) or not content.images:
        return content
    return msgspec.structs.replace(content, images=tuple(msgspec.structs.replace(image, data=b"") for image in content.images))
