import pytest

from features.backup.stack.store_retries import retry
from shared.stores.objects import StoreUnavailable
from shared.timing.backoff import Backoff

AT_ONCE = Backoff(0.001, 0.001)


class Flaky:
    def __init__(self, failures: int) -> None:
        self.left = failures

    async def act(self) -> str:
        self.left -= 1
        if self.left >= 0:
            raise StoreUnavailable(f"{self.left} left")
        return "done"


@pytest.mark.parametrize("seconds", [None, 60.0])
async def test_it_is_repeated_until_it_works(seconds: float | None) -> None:
    heard: list[str] = []
    assert await retry(Flaky(2).act, seconds, lambda error: heard.append(error.message), AT_ONCE) == "done"
    assert heard == ["1 left", "0 left"]


async def test_the_last_error_is_raised_at_the_deadline() -> None:
    flaky = Flaky(1_000_000)
    with pytest.raises(StoreUnavailable, match="left"):
        await retry(flaky.act, 0.02, backoff=AT_ONCE)
    assert flaky.left < 999_999, "it was tried again"


async def test_other_errors_are_not_repeated() -> None:
    async def act() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await retry(act, None)
