"""Named checks of one client: each sends one field, reads one event or uses one helper, and asserts what it must do.

    checks = Checklist()

    @checks("chat.temperature")
    def _() -> None:
        ...

    checks.ensure_named("chat", ChatParams.__annotations__)
    checks.run({"audio": ("models only read and write text", ["chat.audio"])})

Programs import it in the client's environment, so it needs only Python. All checks run, whatever fails. The last line of the output is
JSON with their number and what is refused.
"""

import asyncio
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

E = TypeVar("E", bound=Exception)
Check = Callable[[], Coroutine[Any, Any, None] | None]


class Checklist:
    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}
        self._missing: list[str] = []

    def __call__(self, *names: str) -> Callable[[Check], Check]:
        """Add a check of what is named: `chat.temperature`, `chat event content.delta`, `chat.parse()`."""

        def add(check: Check) -> Check:
            for name in names:
                self.add(name, check)
            return check

        return add

    def add(self, name: str, check: Check) -> None:
        assert name not in self._checks, f"two checks of {name}"
        self._checks[name] = check

    def ensure_named(self, api: str, fields: Iterable[str]) -> None:
        """Fail at the end if a field of the client's own types has no check."""
        self._missing += [f"{api}.{field}" for field in fields if f"{api}.{field}" not in self._checks]

    def run(self, refused: Mapping[str, tuple[str, Iterable[str]]]) -> None:
        """Run all checks, and exit with 1 if one fails. ``refused``: feature -> why we refuse it, and the checks that say so."""
        for feature, (_, names) in refused.items():
            self._missing += [f"{feature}: {name}" for name in names if name not in self._checks]
        with asyncio.Runner() as runner:
            failed = [name for name, check in self._checks.items() if not _passes(name, check, runner)]
        for name in self._missing:
            print(f"no check of {name}")
        if failed:
            print(f"failed: {', '.join(failed)}")
        print(json.dumps({"checks": len(self._checks), "refused": {feature: reason for feature, (reason, _) in refused.items()}}))
        sys.exit(bool(failed or self._missing))


def _passes(name: str, check: Check, runner: asyncio.Runner) -> bool:
    try:
        if inspect.iscoroutine(done := check()):
            runner.run(done)
    except Exception:
        print(f"{name}: {traceback.format_exc(limit=-2)}", flush=True)
        return False
    return True


def error_of(kind: type[E], run: Callable[[], object]) -> E:
    """Return the exception of this kind that it raises."""
    try:
        run()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def script(**turn: Any) -> str:
    """Return a prompt for the scripted model."""
    return json.dumps(turn)
