"""The embedded stack passes each service the settings that the service reads: a renamed setting must not get lost between them."""

import importlib
from pathlib import Path

import pytest

from shared import config, node
from shared.types import SERVICE_NAMES
from stack import secret_files, stack_plan
from stack import stack_home as homes
from stack.settings import PASSED, StackSettings

#: Under `make up`, only gateway and web can be opened to other machines.
STAY_ON_LOOPBACK = {"BIND_HOST", "ALLOW_PLAIN_HTTP", "TLS_CERT_FILE", "TLS_KEY_FILE"}
#: The first two have fixed paths, the supervisor waits a fixed time for a drain, and `aicli worker` sets the others for the worker
#: process that it becomes.
NOT_UNDER_MAKE_UP = {"MESH_STATE_FILE", "JOURNAL_FILE", "RECEIPTS_FILE", "WORKER_PAUSE_FILE", "WORKER_REPORT_FILE", "WORKER_STATUS"} | {
    "JOIN_TICKET_FILE",
    "DRAIN_SECONDS",
}


def declared_by(service: str) -> set[str]:
    module = importlib.import_module(f"services.{service}.settings")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, node.NodeSettings)]
    return {name for kind in kinds for setting in config.settings_of(kind) for name in setting.variable.names}


@pytest.mark.parametrize("service", sorted(SERVICE_NAMES.values()))
def test_every_variable_that_is_passed_on_is_read(service: str) -> None:
    passed = {name for name, services in PASSED.items() if service in services}
    assert passed - declared_by(service) == set()


@pytest.mark.parametrize("service", sorted(SERVICE_NAMES.values()))
def test_every_setting_can_be_given_to_make_up(service: str, tmp_path: Path) -> None:
    home = homes.locate({"AIMESH_HOME": str(tmp_path)})
    homes.ensure_folders(home)
    secret_files.ensure(home)
    environment = stack_plan.service_environment(home, StackSettings(relay=True), {}, service)
    provided = {each for name in environment for each in (name, name.removesuffix("_FILE"))}
    # A service's own database is given as AUTH_DATABASE_URL and reaches the service as DATABASE_URL.
    provided |= {f"{service.upper()}_DATABASE_URL"}
    passed = {name for name, services in PASSED.items() if service in services}
    on_purpose = NOT_UNDER_MAKE_UP | (set() if service in ("gateway", "web") else STAY_ON_LOOPBACK)
    assert declared_by(service) - provided - passed - on_purpose == set()


@pytest.mark.parametrize("service", sorted(SERVICE_NAMES.values()))
def test_every_secret_that_is_handed_over_is_read(service: str) -> None:
    assert set(stack_plan._SECRETS[service]) - declared_by(service) == set()
