"""Every variable in the chart is a setting, and the values can set every setting."""

import json
from collections.abc import Iterator

import pytest

from features.backup.settings import BackupSettings
from services import settings_check
from shared import config
from stack.settings import StackSettings
from tests import tiers
from tests.deploy.chart import rendering
from tests.deploy.chart.rendering import CASES, CHART

#: Variables of third-party programs, by container, and variables of ours that are no settings.
OF_OTHERS = {
    "nats": {"POD_NAME", "SERVER_ADDRESS"},
    "valkey": {"POD_NAME", "PLACE", "SET", "SENTINELS"},
    "sentinel": {"POD_NAME", "PLACE", "SET", "SENTINELS"},
    "postgres": {"POSTGRES_USER", "POSTGRES_PASSWORD_FILE", "POSTGRES_INITDB_ARGS", "PGDATA"},
    "provision": {"PGHOST", "PGUSER", "PGDATABASE", "PGPASSWORD"},
    "vllm": {"HOME", "HF_HOME"},
    "ollama": {"HOME", "MODEL", "OLLAMA_HOST", "OLLAMA_MODELS"},
    "init": {"KEYS", "AIMESH_HOME", "NATS_AUTH"},
    "migrate": {"AIMESH_HOME", "AICLI_PROFILE"},
    "backup": {"AIMESH_HOME"},
    "grafana": set(),
}
#: Settings of the embedded stack that a cluster doesn't need: its servers and workers, DHT nodes, which need fixed UDP
#: ports, and the network of its machine.
EMBEDDED = {
    *("NATS_PORT", "NATS_WEB_PORT", "NATS_AUTH", "AIMESH_ECHO", "LOG_RETENTION_DAYS", "HYPERSWARM"),
    *("ECHO_SERVICE_PORT", "OLLAMA_SERVICE_PORT", "OPENAI_SERVICE_PORT", "HTTP_SERVICE_PORT"),
    *("DHT_HOST", "DHT_BIND_HOST", "DHT_PORT", "MESH_RELAY", "LAN", "REACH", "OBJECT_STORE"),
}


def known() -> set[str]:
    names = {name for kind in settings_check.KINDS for name in config.check_variables(kind, {}).names}
    names |= {setting.variable.name for setting in config.settings_of(BackupSettings)}
    return names | {f"{name}_FILE" for name in names}


def variables(case: str) -> Iterator[tuple[str, str]]:
    for _, pod in rendering.pods(case):
        for container in rendering.containers(pod):
            yield from ((container["name"], name) for name in rendering.environment(container))


@pytest.mark.parametrize("case", tiers.by_day(CASES, "prod", group="containers"))
def test_every_variable_exists(case: str) -> None:
    unknown = {(container, name) for container, name in variables(case) if name not in known()}
    assert {each for each in unknown if each[1] not in OF_OTHERS.get(each[0], set()) and not each[1].startswith("GF_")} == set()


def test_the_schema_knows_every_setting() -> None:
    allowed = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))["definitions"]["settings"]["propertyNames"]["enum"]
    every = {name for kind in (*settings_check.KINDS, StackSettings) for name in config.check_variables(kind, {}).names}
    assert every - set(allowed) == EMBEDDED


@pytest.mark.parametrize("service", ["auth", "gateway", "metrics", "web", "pools.inference"])
def test_a_setting_reaches_its_service_also_where_the_chart_has_a_default(service: str) -> None:
    name = {"pools.inference": "inference"}.get(service, f"aimesh-{service}")
    given = ("settings.LOG_LEVEL=debug", f"{service}.settings.METRICS_ENABLED=false", f"{service}.settings.BIND_HOST=::")
    more = (f"{service}.secretFiles.SMTP_URL.secret=mail", f"{service}.secretFiles.SMTP_URL.key=url")
    [pod] = [pod for each, pod in rendering.pods("", *given, *more) if each["metadata"]["name"] == name]
    environment = rendering.environment(pod["containers"][0])
    assert (environment["LOG_LEVEL"], environment["METRICS_ENABLED"], environment["BIND_HOST"]) == ("debug", "false", "::")
    assert environment["SMTP_URL_FILE"] == "/run/aimesh/SMTP_URL"
    [files] = [volume for volume in pod["volumes"] if volume["name"] == "files"]
    source = {"secret": {"name": "mail", "items": [{"key": "url", "path": "SMTP_URL"}]}}
    assert source in files["projected"]["sources"]


def test_services_migrate_at_their_first_start_and_a_hook_migrates_before_upgrades() -> None:
    def migrates(*words: str) -> str:
        [pod] = [pod for each, pod in rendering.pods("", *words) if each["metadata"]["name"] == "aimesh-auth"]
        return rendering.environment(pod["containers"][0])["MIGRATE"]

    assert (migrates(), migrates("--is-upgrade"), migrates("--is-upgrade", "migrate.pre=false")) == ("on", "off", "on")
    hook = rendering.find("Job", "aimesh-migrate-pre")
    assert hook["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade"
    assert hook["spec"]["template"]["spec"]["containers"][0]["command"][-2:] == ["migrate", "--pre"]
    assert not [each for each in rendering.objects() if each["metadata"]["name"].startswith("aimesh-migrate-post")]
    assert rendering.find("Job", "aimesh-migrate-post-1", "cnpg")


def test_each_replica_may_have_two_places() -> None:
    def places(*words: str) -> str:
        command: list[str] = rendering.find("Job", "aimesh-init", "", *words)["spec"]["template"]["spec"]["containers"][0]["command"]
        return command[command.index("--active") + 1]

    assert (places(), places("gateway.autoscaling.max=50"), places("pools.more.autoscaling.max=30")) == ("40", "100", "62")
