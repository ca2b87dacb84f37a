import pytest

from services.inference.models import memory_bandwidth


@pytest.mark.parametrize("threads", [1, 3, 64])
def test_what_all_threads_read_is_counted(threads: int) -> None:
    assert memory_bandwidth.measure(threads, seconds=0.01, buffer_bytes=4 * 2**20) > 2**20
