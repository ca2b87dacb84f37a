"""Fill in the lines that point agents and libraries at this mesh: the pages and docs/howto/agents.md show them, tests/agents runs them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from services.web import rendering
from shared.api.gateway import ServedModel, ServedModels
from shared.identity import install_line
from shared.protocol import agent_requirements
from shared.types import Ability

_FILE = Path(__file__).parent / "agents.toml"
_PLACEHOLDER = re.compile(r"\b(?:ADDRESS|MODEL|CONTEXT|INPUTS|IMAGES)\b")


class AgentSetup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    #: The command that installs it, and those that start it.
    install: str
    commands: str
    #: A file to write before the start, and its content; empty for none.
    file: str = ""
    text: str = ""
    note: str = ""

    @property
    def slug(self) -> str:
        return self.name.lower().replace(" ", "-")


class _SetupFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    setups: tuple[AgentSetup, ...]


@dataclass(frozen=True, slots=True)
class AgentTarget:
    """What an agent must know of the mesh."""

    #: Without a trailing slash.
    address: str
    model: str
    context_tokens: int
    has_images: bool


def load() -> tuple[AgentSetup, ...]:
    """Return the setups with placeholders. Raises a msgspec error for an invalid file."""
    return msgspec.toml.decode(_FILE.read_bytes(), type=_SetupFile).setups


def fill(setup: AgentSetup, target: AgentTarget) -> AgentSetup:
    values = {
        "ADDRESS": target.address,
        "MODEL": target.model,
        "CONTEXT": str(target.context_tokens),
        "INPUTS": '"text", "image"' if target.has_images else '"text"',
        "IMAGES": "true" if target.has_images else "false",
    }

    def replace(text: str) -> str:
        return _PLACEHOLDER.sub(lambda found: values[found[0]], text).strip("\n")

    return msgspec.structs.replace(setup, commands=replace(setup.commands), text=replace(setup.text))


@dataclass(frozen=True, slots=True)
class AgentsView:
    #: The line that installs aicli, and says how to sign in.
    install: str
    setups: tuple[AgentSetup, ...]
    #: What to know about the model that they name; empty if agents can work with it.
    hint: str


def view(setups: Iterable[AgentSetup], address: str, served: ServedModels | None, *, pin: str | None = None) -> AgentsView:
    """Return the setups with the best model for agents, or else with the default one. ``served`` is None if it is unavailable."""
    model = _choose(served.models if served is not None else ())
    name = rendering.in_code(model.name if model is not None else None)
    context = (model.context_tokens if model is not None else 0) or agent_requirements.CONTEXT_TOKENS
    target = AgentTarget(address, name, context, model is not None and Ability.IMAGES in model.abilities)
    if model is None or model.name != name:
        hint = "Replace MODEL with a model’s name."
    else:
        hint = "" if model.suits_agents or not model.agents_hint else f"No model here is known to suit agents. {name}: {model.agents_hint}."
    return AgentsView(install_line.make(address, pin=pin), tuple(fill(setup, target) for setup in setups), hint)


def _choose(models: Iterable[ServedModel]) -> ServedModel | None:
    """Return the first model that suits agents, or else may suit them, or else generates text."""

    def rank(model: ServedModel) -> tuple[bool, bool]:
        has_context = model.context_tokens >= agent_requirements.CONTEXT_TOKENS
        return not model.suits_agents, not (has_context and model.right_calls is None and Ability.TOOLS in model.abilities)

    return min((model for model in models if not model.only_embeds), key=rank, default=None)
