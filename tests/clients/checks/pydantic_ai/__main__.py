"""All checks of Pydantic AI."""

from checks.pydantic_ai import agents, contents, settings
from checks.pydantic_ai.client import APIS, checks

for api in APIS:
    checks.ensure_named(f"{api}: event", agents.STREAM_EVENTS)
checks.run({**contents.REFUSED, **settings.REFUSED})
