"""deploy/swarm/stack.yaml gives each task what its service reads, from files that exist, and updates without downtime."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared import config, node
from tests.cases import case
from tests.deploy import compose_file, containers

PATH = compose_file.ROOT / "deploy/swarm/stack.yaml"
STACK: dict[str, Any] = yaml.safe_load(PATH.read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
OURS = ("auth", "gateway", "inference", "metrics", "web")


def declared_by(service: str) -> set[str]:
    module = importlib.import_module(f"services.{service}.settings")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, node.NodeSettings)]
    return {name for kind in kinds for setting in config.settings_of(kind) for name in setting.variable.names}


@pytest.mark.parametrize("service", OURS)
def test_every_variable_is_a_setting_and_every_file_is_mounted(service: str) -> None:
    given: dict[str, str] = SERVICES[service]["environment"]
    known = declared_by(service)
    assert {name if name in known else name.removesuffix("_FILE") for name in given} <= known
    mounted = {secret["target"] for secret in SERVICES[service]["secrets"]}
    assert {value for value in given.values() if value.startswith("/run/aimesh/")} == mounted
    assert SERVICES[service]["command"] == ["python", "-m", f"services.{service}"]


def test_settings_of_money_files_and_webhooks_are_passed_on() -> None:
    names = re.compile(
        r"(MONEY|PAYMENTS|FILES_URL|MODEL_ORIGIN\w*|CURRENCY|SELLER_\w+|TAX_\w+|PRICING_PAGE|\w*WEBHOOK_\w+|(STRIPE|PADDLE)_\w+_FILE|STRIPE_TAX)"
    )
    for service in OURS:
        given = {name.removesuffix("_FILE"): value for name, value in SERVICES[service]["environment"].items()}
        for name in sorted(filter(names.fullmatch, declared_by(service))):
            with case(f"{service} {name}"):
                assert given[name.removesuffix("_FILE")] in (f"${{{name}:-}}", f"${{{name}_FILE:-}}")


def test_secrets_are_files_that_the_page_makes_and_that_are_not_empty(tmp_path: Path) -> None:
    handed = containers.run_init(tmp_path, {"TRUSTED_PROXIES": "127.0.0.1"})
    used = {secret["source"] for service in SERVICES.values() for secret in service.get("secrets", ())}
    assert used == set(STACK["secrets"])
    for name, secret in STACK["secrets"].items():
        place = handed / Path(secret["file"]).relative_to("handed")
        assert place.is_file(), name
        # Only these depend on the environment of the page's command.
        assert place.stat().st_size > 0 or name.startswith("proxy-"), name
    for each in STACK["configs"].values():
        assert (PATH.parent / each["file"]).resolve().is_file()
    # Swarm never changes secrets and configs, so a new number makes new ones.
    for each in (*STACK["secrets"].values(), *STACK["configs"].values()):
        assert each["name"].endswith("-${FILES:-1}")


def test_the_registry_is_required() -> None:
    """An empty one would be an invalid name of an image. Docker keeps the error of the last variable in a text only."""
    for name in OURS:
        assert re.fullmatch(r"\$\{AIMESH_REGISTRY:\?[^}]+\}", SERVICES[name]["labels"]["aimesh.registry"])
        assert SERVICES[name]["image"].startswith("${AIMESH_REGISTRY}/aimesh")


def test_updates_start_the_new_task_first_and_go_back_if_it_fails() -> None:
    for name in OURS:
        update = SERVICES[name]["deploy"]["update_config"]
        assert compose_file.resolve(update["order"], {}) == "start-first"
        assert update["failure_action"] == "rollback"
        assert int(SERVICES[name]["deploy"]["replicas"]) == (3 if name == "inference" else 2)
    (gpu,) = SERVICES["inference"]["deploy"]["resources"]["reservations"]["generic_resources"]
    assert gpu == {"discrete_resource_spec": {"kind": "NVIDIA-GPU", "value": 1}}


def test_replicas_join_by_ticket_with_a_key_of_their_own() -> None:
    for name in OURS:
        assert SERVICES[name]["environment"]["NODE_KEY_FILE"].startswith("/tmp/")
        assert ("JOIN_TICKET_FILE" in SERVICES[name]["environment"]) == (name != "auth")


def test_tasks_are_confined_checked_and_found_by_their_own_addresses() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges" not in str(service), "Swarm ignores it"
        if name != "provision":
            assert service["healthcheck"]["test"], name
            assert service["deploy"]["endpoint_mode"] == "dnsrr", name
    text = (compose_file.ROOT / "deploy/docker/proxy.cfg").read_text(encoding="utf-8")
    aliases = {alias for name in ("gateway", "web") for alias in SERVICES[name]["networks"]["entry"]["aliases"]}
    assert aliases == set(re.findall(r"server-template \S+ \d+ ([\w-]+):", text))
    assert SERVICES["web"]["environment"]["TRUSTED_PROXIES"] == STACK["networks"]["entry"]["ipam"]["config"][0]["subnet"]


def test_its_networks_are_others_than_those_of_compose() -> None:
    """So that one machine can run both during a migration."""
    assert STACK["networks"]["entry"]["ipam"]["config"][0]["subnet"] not in (compose_file.ROOT / "compose.yaml").read_text(encoding="utf-8")
