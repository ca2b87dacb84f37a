"""The providers that the upstream settings allow."""

from pathlib import Path
from typing import Any

import pytest

from features.remote_servers.settings import ServerStackSettings
from stack import stack_plan
from stack.settings import StackSettings


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, ()),
        ({"openai_key": "sk-x"}, ("openai",)),
        ({"openai_url": "https://api.example.org/v1"}, ("openai",)),
        ({"openai_url": "http://10.0.0.7:8000/v1"}, ()),
        ({"openai_url": "http://localhost:8000/v1", "openai_key": "x"}, ()),
        ({"openai_url": "http://[::1]:8000/v1"}, ()),
        ({"openai_url": "http://[broken"}, ()),
        ({"ollama_url": "http://192.168.1.9:11434", "openai_key": "x"}, ("openai",)),
        ({"ollama_url": "http://ollama.example.org:11434", "openai_key": "x"}, ("ollama", "openai")),
        ({"ollama_url": "http://8.8.8.8:11434"}, ("ollama",)),
    ],
)
def test_providers_of_settings(given: dict[str, Any], found: tuple[str, ...]) -> None:
    own = ServerStackSettings(**given)
    assert stack_plan.providers_of(StackSettings(more=(own,))) == found
    assert stack_plan.providers_of(StackSettings(more=(own,), external_providers=("acme",))) == ("acme",)


def test_providers_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "upstreams.toml"
    file.write_text(
        """
        [east]
        url = "https://east.example.org/v1"
        provider = "acme"
        [west]
        url = "https://west.example.org/v1"
        [near]
        url = "http://10.0.0.5:8000/v1"
        [forwards]
        url = "http://10.0.0.6:8000/v1"
        external = true
        [ours]
        url = "https://llm.example.org/v1"
        external = false
        """
    )
    settings = StackSettings(more=(ServerStackSettings(openai_upstreams=file, openai_key="x"),))
    assert stack_plan.providers_of(settings) == ("acme", "forwards", "west")
    for broken in ("not TOML", "a = 1"):
        file.write_text(broken)
        assert stack_plan.providers_of(settings) == ()
    missing = ServerStackSettings(openai_upstreams=tmp_path / "missing")
    assert stack_plan.providers_of(StackSettings(more=(missing,))) == ()
