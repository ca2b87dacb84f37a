"""The lines for agents: complete, for the right model, and safe to paste. tests/agents runs them."""

import re

import pytest

from services.web import agent_setups
from services.web.agent_setups import AgentTarget
from shared.api.gateway import ServedModel, ServedModels
from shared.types import ModelName

SETUPS = agent_setups.load()
HINT = "tools not checked, context unknown"


def served(name: str, *, context_tokens: int = 100_000, suits_agents: bool = False, only_embeds: bool = False) -> ServedModel:
    return ServedModel(
        ModelName(name), 1, context_tokens, suits_agents=suits_agents, agents_hint=HINT, only_embeds=only_embeds, abilities=("images",)
    )


def test_every_program_that_the_readme_names_has_lines() -> None:
    names = {"Claude Code", "Codex", "opencode", "Cline", "Continue", "Qwen Code", "aider", "Open WebUI", "AI SDK", "LangChain"}
    assert names <= {setup.name for setup in SETUPS}
    assert len({setup.slug for setup in SETUPS}) == len(SETUPS)


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.slug)
def test_lines_name_the_address_and_the_model(setup: agent_setups.AgentSetup) -> None:
    filled = agent_setups.fill(setup, AgentTarget("https://ai.example.org", "qwen3", 81_920, has_images=False))
    lines = filled.commands + filled.text
    assert "https://ai.example.org" in lines
    assert "AIMESH_API_KEY" in lines
    assert re.search(r"\bqwen3\b", lines) or setup.name == "Open WebUI"
    assert not re.search(r"\b(ADDRESS|MODEL|CONTEXT|INPUTS|IMAGES)\b", lines)
    # A test adds the task to the last line.
    assert filled.commands == filled.commands.strip()
    assert '"image"' not in lines.replace('"image": false', "")
    if "CONTEXT" in setup.commands + setup.text:
        assert "81920" in lines


def test_the_first_model_that_suits_agents_is_taken() -> None:
    models = (served("vectors", suits_agents=True, only_embeds=True), served("small"), served("big", suits_agents=True))
    view = agent_setups.view(SETUPS, "http://x", ServedModels(models))
    assert view.hint == ""
    assert "ANTHROPIC_MODEL=big" in view.setups[0].commands
    assert "CLAUDE_CODE_MAX_CONTEXT_TOKENS=100000" in view.setups[0].commands


def test_a_model_that_nobody_has_checked_comes_before_those_that_can_t_suit_agents() -> None:
    def tooled(name: str, context_tokens: int = 100_000, right_calls: int | None = None) -> ServedModel:
        return ServedModel(ModelName(name), 1, context_tokens, agents_hint=HINT, abilities=("tools",), right_calls=right_calls)

    models = (served("silent"), tooled("short", 8192), tooled("bad", right_calls=12), tooled("long"), tooled("longer", 200_000))
    assert agent_setups.view(SETUPS, "http://x", ServedModels(models)).hint == f"No model here is known to suit agents. long: {HINT}."


def test_if_no_model_suits_agents_the_default_one_is_taken_and_the_page_says_what_it_lacks() -> None:
    view = agent_setups.view(SETUPS, "http://x", ServedModels((served("small", context_tokens=0),)))
    assert view.hint == f"No model here is known to suit agents. small: {HINT}."
    assert "ANTHROPIC_MODEL=small" in view.setups[0].commands
    assert "CLAUDE_CODE_MAX_CONTEXT_TOKENS=65536" in view.setups[0].commands


@pytest.mark.parametrize("models", [(), (served("a; rm -rf ~", suits_agents=True),), None], ids=["none", "unsafe", "unavailable"])
def test_without_a_name_that_is_safe_in_a_shell_the_lines_have_a_placeholder(models: tuple[ServedModel, ...] | None) -> None:
    view = agent_setups.view(SETUPS, "http://x", None if models is None else ServedModels(models))
    assert view.hint == "Replace MODEL with a model’s name."
    assert "ANTHROPIC_MODEL=MODEL" in view.setups[0].commands


def test_the_card_shows_how_to_install_aicli_from_this_address() -> None:
    view = agent_setups.view(SETUPS, "https://ai.example.org", None)
    assert view.install == "curl -fsS https://ai.example.org/install.sh | sh"
    assert "--pinnedpubkey sha256//PIN= " in agent_setups.view(SETUPS, "https://192.168.1.20:3000", None, pin="PIN=").install
