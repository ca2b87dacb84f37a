import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine.prompt_cache import BLOCK, HashedTokens


def common(one: list[int], other: list[int], most: int = 10_000) -> int:
    found = HashedTokens(one).common(HashedTokens(other), most)
    for guess in (1, BLOCK, 3 * BLOCK, found, found + BLOCK, 10_000):
        assert HashedTokens(other).common(HashedTokens(one), most, guess) == found
    return found


@pytest.mark.parametrize("length", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 4 * BLOCK - 1, 4 * BLOCK, 4 * BLOCK + 1, 2000])
@pytest.mark.parametrize("more", [0, 1, 300])
def test_common_prefix_across_blocks(length: int, more: int) -> None:
    same = list(range(length))
    assert common(same, same + [0] * more) == length
    assert common(same + [-1] * 300, same + [-2] * more) == length
    assert common(same + [-1] * 300, same + [-1] * 300, most=length) == length


@given(st.lists(st.integers(0, 1), max_size=600), st.lists(st.integers(0, 1), max_size=300), st.integers(0, 600), st.integers(0, 600))
def test_common_prefix_equals_a_simple_count(one: list[int], tail: list[int], cut: int, most: int) -> None:
    two = one[:cut] + tail
    differing = (at for at, pair in enumerate(zip(one, two, strict=False)) if pair[0] != pair[1])
    assert common(one, two, most) == min(most, next(differing, min(len(one), len(two))))


def test_list_that_grew_is_hashed_on_demand() -> None:
    tokens = list(range(BLOCK))
    held = HashedTokens(tokens)
    tokens += range(BLOCK, 3 * BLOCK)
    held.hash_blocks()
    assert held.common(HashedTokens(list(range(10 * BLOCK))), 10_000) == 3 * BLOCK
