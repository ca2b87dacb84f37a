from collections import Counter
from collections.abc import AsyncIterator

import pytest

from bench import mixture
from bench.mixture import Leaving


def test_every_lap_has_every_form_as_often_as_it_says() -> None:
    for lap in range(3):
        asked = Counter(mixture.form_of(number).name for number in range(lap * mixture.LAP, (lap + 1) * mixture.LAP))
        assert asked == {form.name: form.times for form in mixture.FORMS}


def test_two_runs_ask_the_same_and_two_laps_in_another_order() -> None:
    laps = [[mixture.form_of(number).name for number in range(lap * mixture.LAP, (lap + 1) * mixture.LAP)] for lap in (0, 0, 1)]
    assert laps[0] == laps[1]
    assert laps[0] != laps[2]


@pytest.mark.parametrize(
    ("lines", "leaving", "is_wrong"),
    [
        pytest.param(['data: {"a": 1}', "", "data: [DONE]", ""], Leaving.AT_THE_END, False, id="a whole stream"),
        pytest.param(['data: {"a": 1}', ""], Leaving.AT_THE_END, True, id="one that broke off"),
        pytest.param([], Leaving.AT_THE_END, True, id="one without anything"),
        pytest.param(['data: {"error": {}}', "", "data: [DONE]"], Leaving.AT_THE_END, True, id="one with an error"),
        pytest.param(['data: {"a": 1}', ""] * 10, Leaving.IN_THE_MIDDLE, False, id="one that is left before it breaks off"),
        pytest.param(['data: {"a": 1}', ""], Leaving.IN_THE_MIDDLE, True, id="one that broke off before it was left"),
    ],
)
async def test_a_stream_ends_as_it_should_or_not(lines: list[str], leaving: Leaving, is_wrong: bool) -> None:
    async def arriving() -> AsyncIterator[str]:
        for line in lines:
            yield line

    assert ((await mixture.find_wrong_in_stream(arriving(), leaving)) is not None) is is_wrong
