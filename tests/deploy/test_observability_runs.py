"""Prometheus and Alertmanager of the profile `observability`, with compose's own commands: Debian's programs, no containers."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from services.metrics.alerting import rules
from tests.deploy import compose_file, containers, debian
from tests.deploy.observers import SERVICES, file_at, option
from tests.deploy.test_alert_delivery import running
from tests.testnet import free_port, until

PAGE = compose_file.ROOT / "docs" / "howto" / "observability.md"
START_SECONDS = 60


def here(word: str, places: Mapping[str, str]) -> str:
    """Replace the container's paths and addresses in a word of the command with those of this machine."""
    for place, instead in places.items():
        word = word.replace(place, instead)
    return compose_file.resolve(word, {})


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


async def fetch(url: str) -> Any:
    async with httpx.AsyncClient(timeout=5) as client:
        return (await client.get(url)).raise_for_status().json()


async def test_prometheus_starts_with_composes_command_and_has_every_rule(tmp_path: Path) -> None:
    port = free_port()
    folder = file_at("prometheus", "/etc/prometheus")
    places = {"=/etc/prometheus": f"={folder}", "=/prometheus": f"={tmp_path}/data", "=:9091": f"=127.0.0.1:{port}"}
    words = [here(word, places) for word in SERVICES["prometheus"]["command"]]
    debian.check("promtool", "check", "config", file_at("prometheus", option("prometheus", "config.file")))
    with running(tmp_path / "run", debian.program("prometheus"), *words):
        url = f"http://127.0.0.1:{port}"
        await until(lambda: answers(f"{url}/-/ready"), seconds=START_SECONDS)
        found = [rule["name"] for group in (await fetch(f"{url}/api/v1/rules"))["data"]["groups"] for rule in group["rules"]]
        assert {rule.name for rule in rules.load()} <= set(found)
        flags = (await fetch(f"{url}/api/v1/status/flags"))["data"]
    assert flags["enable-feature"] == "exemplar-storage"
    # Prometheus counts gigabytes in powers of two.
    assert (flags["storage.tsdb.retention.time"], flags["storage.tsdb.retention.size"]) == ("30d", "8GiB")


async def test_alertmanager_starts_with_composes_command_and_the_addresses_that_init_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_out = containers.hand_out_program()
    written = tmp_path / "written.env"
    written.write_text("PAGE_WEBHOOK_URL='https://example.org/page?token=t0ken'\n", encoding="utf-8")
    monkeypatch.setattr(hand_out, "ADDRESSES", written)
    monkeypatch.setattr(containers, "hand_out_program", lambda: hand_out)
    given = compose_file.environment_of("alertmanager")
    assert not [value for value in given.values() if "://" in value], "addresses may hold tokens"
    folder = containers.run_init(tmp_path) / "alertmanager"
    port, used = free_port(), tmp_path / "used.yml"
    places = {
        "/etc/alertmanager": str(file_at("alertmanager", "/etc/alertmanager")),
        "=/alertmanager": f"={tmp_path}/data",
        "=:9093": f"=127.0.0.1:{port}",
    }
    words = [here(word, places) for part in ("entrypoint", "command") for word in SERVICES["alertmanager"][part]]
    environment = {name: value.replace("/run/aimesh", str(folder)) for name, value in given.items()}
    environment |= {"ALERTMANAGER": debian.program("alertmanager"), "CONFIG_OUT": str(used)}
    with running(tmp_path / "run", *words, **environment):
        url = f"http://127.0.0.1:{port}"
        await until(lambda: answers(f"{url}/-/ready"), seconds=START_SECONDS)
        assert (await fetch(f"{url}/api/v2/status"))["cluster"]["status"] == "disabled"
        (shown,) = re.findall(r"^docker compose exec alertmanager (amtool .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
        debian.check(*shlex.split(shown.replace("http://127.0.0.1:9093", url)))
        [silence] = await fetch(f"{url}/api/v2/silences")
    [matcher] = silence["matchers"]
    assert matcher["value"] in {rule.name for rule in rules.load()}
    assert "https://example.org/page?token=t0ken" in used.read_text(encoding="utf-8")
    debian.check("amtool", "check-config", used)
    told = {each["name"]: each["webhook_configs"][0]["url"] for each in yaml.safe_load(used.read_text(encoding="utf-8"))["receivers"]}
    assert told["ticket"] == "http://ticket.invalid/"
