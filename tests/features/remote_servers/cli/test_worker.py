"""`aicli worker` for other servers."""

import os

import pytest

from services.inference.settings import InferenceSettings
from shared import config
from tests.cli.fake_mesh import Shell


@pytest.mark.parametrize(("arguments", "is_kept"), [((), False), (("--backend", "openai"), True)])
def test_a_shell_with_the_stacks_hosts_of_servers_can_run_a_worker(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], is_kept: bool
) -> None:
    given: dict[str, str] = {}

    def become(_file: str, _command: list[str], environment: dict[str, str]) -> None:
        given.update(environment)

    monkeypatch.setattr(os, "execve", become)
    shell.environment.update(REMOTE_MODEL_HOSTS="10.0.0.5", NODE_KEY_FILE="/key", NATS_URL="nats://127.0.0.1:1")
    assert shell("worker", *arguments).exit_code == 0
    assert ("REMOTE_MODEL_HOSTS" in given) is is_kept
    config.load(InferenceSettings, given)
