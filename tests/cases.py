"""Many small cases in one test; a failure names its case.

    for name in NAMES:
        with case(name):
            assert …

A parametrized test costs a few milliseconds per case for fixtures and reports: too much for hundreds of cases that take microseconds.
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
