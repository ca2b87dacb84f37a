"""When what grew in a step had grown: at its last look, and not at its end."""

from datetime import UTC, datetime, timedelta

import pytest

from services.metrics.history.growing import Stretch
from services.metrics.history.rolling import HOUR, MINUTE, RAW, Piece

BEGIN = datetime(2026, 3, 29, 12, tzinfo=UTC)


@pytest.mark.parametrize(("resolution", "step_seconds", "seconds"), [(RAW, 15, 30), (MINUTE, 300, 885), (HOUR, 3600, 10785)])
def test_the_last_look_of_a_step(resolution: int, step_seconds: int, seconds: int) -> None:
    stretch = Stretch(Piece(resolution, BEGIN, BEGIN), step_seconds, [], [], [], by_node=False)
    assert stretch.looked(2) == BEGIN + timedelta(seconds=seconds)
