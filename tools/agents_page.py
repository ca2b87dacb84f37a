"""Write the lines for agents, which the dashboard shows, into docs/howto/agents.md. The rest of that page is written by hand."""

from collections.abc import Iterator
from pathlib import Path

from services.web import agent_setups
from services.web.agent_setups import AgentSetup, AgentTarget
from shared.protocol import agent_requirements
from tools import generated

PAGE = generated.ROOT / "docs" / "howto" / "agents.md"
_START = "<!-- Generated from services/web/agents.toml by `python -m tools.docs`. -->"
_END = "<!-- End of the generated part. -->"
_EXAMPLE = AgentTarget("http://127.0.0.1:3000", "MODEL", agent_requirements.CONTEXT_TOKENS, has_images=True)
_LANGUAGES = {"json": "json", "yaml": "yaml", "mjs": "javascript", "py": "python"}


def files() -> dict[Path, str]:
    parts = "\n".join(part for setup in agent_setups.load() for part in _sections(agent_setups.fill(setup, _EXAMPLE)))
    return {PAGE: generated.with_part(PAGE.read_text(encoding="utf-8"), _START, f"\n{parts}\n", _END)}


def _sections(setup: AgentSetup) -> Iterator[str]:
    yield f"### {setup.name}\n"
    yield f"Install: `{setup.install}`\n"
    if setup.file:
        yield f"In `{setup.file}`:\n\n```{_LANGUAGES[setup.file.rpartition('.')[2]]}\n{setup.text}\n```\n"
    yield f"```bash\n{setup.commands}\n```\n"
    if setup.note:
        yield f"{setup.note}\n"
