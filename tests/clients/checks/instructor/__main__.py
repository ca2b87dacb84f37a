"""All checks of Instructor."""

import inspect

from instructor import Instructor

from checks.instructor import modes, others
from checks.instructor.client import checks

checks.ensure_named("mode", modes.unchecked())
checks.ensure_named("create", [name for name in inspect.signature(Instructor.create).parameters if name not in {"self", "kwargs"}])
checks.run(others.REFUSED)
