"""What errors say to people is as recorded: a change of a sentence is seen in a review, in one place."""

import pytest

from tests import sentences


@pytest.mark.parametrize("surface", sentences.SURFACES)
def test_errors_say_what_is_recorded(surface: str) -> None:
    assert sentences.said_by(surface) == sentences.recording(surface).read_text(encoding="utf-8"), "python -m tests.sentences"
