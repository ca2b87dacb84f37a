"""Many small cases in one test, of which a failure names its own.

    for name in NAMES:
        with case(name):
            assert …

A parametrised test costs some milliseconds a case, for fixtures and reports: too much for hundreds that take microseconds each.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def case(name: object) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        error.add_note(f"case: {name!r}"[:200])
        raise
