"""Describes an exception for logs and tables without its text, which may quote a row, a request or a secret."""

import traceback
from collections.abc import Iterator

from shared import errors

_MAX_PLACES = 3
_MAX_ERRORS = 3
_MAX_LETTERS = 300


def describe(error: BaseException) -> str:
    """Return the class or the stable code, and where in our code it was raised: `ValueError at stripe_provider.py:199 in _checkout`."""
    texts = [_describe_one(one) for one, _ in zip(leaves(error), range(_MAX_ERRORS), strict=False)]
    return "; ".join(texts)[:_MAX_LETTERS]


def _describe_one(error: BaseException) -> str:
    name = f"{errors.code_of(error)} ({type(error).__name__})" if isinstance(error, errors.AimeshError) else type(error).__name__
    state = getattr(error, "sqlstate", None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/site-packages/" not in frame.filename]
    places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} in {frame.name}" for frame in frames[: -_MAX_PLACES - 1 : -1]]
    return " ".join([name, *([str(state)] if state else []), *(["at", " < ".join(places)] if places else [])])


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions of a group, and of groups in it."""
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from leaves(one)
    else:
        yield error
