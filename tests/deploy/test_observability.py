"""The profile `observability`: each program finds its configuration, every client finds its server, and stored data is bounded."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from services.metrics.export import otlp_records
from services.metrics.settings import MetricsSettings
from shared import config
from shared.types import MeshName
from stack import initialization
from stack import stack_home as homes
from tests.deploy import compose_file, containers
from tests.deploy.compose_file import ROOT, mounted
from tests.deploy.grafana_boards import BOARDS
from tests.deploy.observers import COLLECTOR, JAEGER, LOKI, OBSERVERS, PROMETHEUS, SERVICES, SOURCES, file_at, option, read

# --- what each program reads ----------------------------------------------------------------------------------------


def test_it_is_these_six() -> None:
    assert set(OBSERVERS) == {"otel-collector", "jaeger", "loki", "prometheus", "alertmanager", "grafana"}


@pytest.mark.parametrize("service", sorted(OBSERVERS))
def test_what_is_mounted_is_there(service: str) -> None:
    for here in mounted(service).values():
        assert here.is_file() or any(here.iterdir()), here


def test_grafana_finds_its_boards_and_the_first_page() -> None:
    [folder] = read("grafana", "/etc/grafana/provisioning/dashboards/aimesh.yml")["providers"]
    boards = {path.name for path in file_at("grafana", folder["options"]["path"]).glob("*.json")}
    assert boards == {f"{board}.json" for board in BOARDS}
    first = compose_file.environment_of("grafana")["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert file_at("grafana", first).is_file()


def test_boards_and_links_name_sources_that_there_are() -> None:
    wanted = {variable["query"] for board in BOARDS.values() for variable in board["templating"]["list"]}
    assert wanted == {"prometheus", "loki"}
    assert wanted <= {source["type"] for source in SOURCES.values()}
    text = file_at("grafana", "/etc/grafana/provisioning/datasources/aimesh.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"datasourceUid: (\w+)", text)) <= set(SOURCES)


@pytest.mark.parametrize("name", ["collector", "jaeger"])
def test_a_pipeline_names_what_is_declared(name: str) -> None:
    read_file = {"collector": COLLECTOR, "jaeger": JAEGER}[name]
    for pipeline in read_file["service"]["pipelines"].values():
        for part in ("receivers", "processors", "exporters"):
            assert pipeline[part], f"{name} has a pipeline without {part}"
            assert set(pipeline[part]) <= set(read_file[part])
    used = {each for pipeline in read_file["service"]["pipelines"].values() for each in pipeline["exporters"]}
    assert used == set(read_file["exporters"])
    assert set(read_file["service"].get("extensions", [])) == set(read_file.get("extensions", {}))


def test_the_collector_takes_what_the_metrics_service_hands_on_and_no_more_than_it_has_room_for() -> None:
    pipelines = COLLECTOR["service"]["pipelines"]
    assert {f"/v1/{signal}" for signal in pipelines} == {otlp_records.SPANS_PATH, otlp_records.LOGS_PATH}
    assert all(pipeline["processors"][0] == "memory_limiter" for pipeline in pipelines.values())
    assert all(exporter["sending_queue"]["queue_size"] <= 100 for exporter in COLLECTOR["exporters"].values())


def test_jaeger_keeps_its_traces_where_it_looks_for_them() -> None:
    (store,) = JAEGER["extensions"]["jaeger_storage"]["backends"]
    assert JAEGER["extensions"]["jaeger_query"]["storage"]["traces"] == store
    assert JAEGER["exporters"]["jaeger_storage_exporter"]["trace_storage"] == store


# --- connections ----------------------------------------------------------------------------------------------------


def port_of(address: str) -> int:
    """Return the port of an address that others can reach."""
    host, _, port = address.rpartition(":")
    assert host in ("0.0.0.0", ""), f"{address} is for the container itself"
    return int(port)


def own_metrics(of: Mapping[str, Any]) -> int:
    """Return the port of the own metrics of a program that is built from the collector's parts."""
    (reader,) = of["service"]["telemetry"]["metrics"]["readers"]
    told = reader["pull"]["exporter"]["prometheus"]
    return port_of(f"{told['host']}:{told['port']}")


def of_metrics() -> int:
    assert compose_file.environment_of("metrics")["BIND_HOST"] == "0.0.0.0"
    (port,) = (each.default for each in config.settings_of(MetricsSettings) if each.variable.name == "PROMETHEUS_PORT")
    return int(str(port))


LISTENS: dict[str, set[int]] = {
    "otel-collector": {port_of(COLLECTOR["receivers"]["otlp"]["protocols"]["http"]["endpoint"]), own_metrics(COLLECTOR)},
    "jaeger": {
        port_of(JAEGER["receivers"]["otlp"]["protocols"]["http"]["endpoint"]),
        port_of(JAEGER["extensions"]["jaeger_query"]["http"]["endpoint"]),
        own_metrics(JAEGER),
    },
    "loki": {LOKI["server"]["http_listen_port"]},
    "prometheus": {port_of(option("prometheus", "web.listen-address"))},
    "alertmanager": {port_of(option("alertmanager", "web.listen-address"))},
    # Grafana's default.
    "grafana": {3000},
    "metrics": {of_metrics()},
}


def dotenv() -> dict[str, str]:
    """Return the lines for `.env` that the page shows."""
    text = (ROOT / "docs" / "howto" / "observability.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```dotenv\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return dict(line.split("=", 1) for line in block.splitlines())


def asked() -> Iterator[tuple[str, str]]:
    """Yield each client and the address that it connects to."""
    for value in compose_file.environment_of("metrics", dotenv()).values():
        if value in dotenv().values() and value.startswith("http"):
            yield "metrics", value
    for exporter in COLLECTOR["exporters"].values():
        yield "otel-collector", exporter["endpoint"]
    for source in SOURCES.values():
        yield "grafana", source["url"]
    for job in [*PROMETHEUS["scrape_configs"], *PROMETHEUS["alerting"]["alertmanagers"]]:
        for target in job["static_configs"][0]["targets"]:
            yield "prometheus", f"http://{target}"


def networks(service: str) -> set[str]:
    return set(SERVICES[service]["networks"])


def reach(asker: str, address: str) -> None:
    """Fail if nothing listens at the address."""
    parts = urlsplit(address)
    assert parts.hostname is not None
    name = asker if parts.hostname == "localhost" else parts.hostname
    assert name in LISTENS, f"{address} is nobody"
    assert parts.port in LISTENS[name], f"{name} does not listen at {parts.port}"
    assert networks(asker) & networks(name), f"{asker} and {name} are in no network together"


@pytest.mark.parametrize(("asker", "address"), list(asked()))
def test_who_is_asked_listens_there(asker: str, address: str) -> None:
    reach(asker, address)


@pytest.mark.parametrize(
    ("asker", "address", "words"),
    [
        ("grafana", "http://tempo:3200", "is nobody"),
        ("grafana", "http://loki:3101", "does not listen"),
        ("metrics", "http://loki:3100", "in no network together"),
    ],
)
def test_an_address_of_nobody_is_found(asker: str, address: str, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        reach(asker, address)


def test_loki_is_asked_at_its_own_endpoint_for_otlp() -> None:
    assert COLLECTOR["exporters"]["otlp_http/loki"]["endpoint"].endswith("/otlp")


def test_streams_are_named_by_labels_that_loki_makes_of_what_is_sent() -> None:
    (rule,) = LOKI["limits_config"]["otlp_config"]["resource_attributes"]["attributes_config"]
    assert rule["action"] == "index_label"
    sent = {each["key"] for each in otlp_records.resource("gateway", "UB", "1")["attributes"]}
    assert set(rule["attributes"]) <= sent
    labels = {name.replace(".", "_") for name in rule["attributes"]}
    panels = [panel for board in BOARDS.values() for panel in board["panels"] if panel["type"] == "logs"]
    shown = [query["expr"] for panel in panels for query in panel["targets"]]
    shown.append(SOURCES["jaeger"]["jsonData"]["tracesToLogsV2"]["query"])
    for query in shown:
        assert set(re.findall(r"(\w+) *=", query[query.index("{") : query.index("}")])) <= labels, query
    # `severity_text` and `trace_id` are fields of a line.
    assert LOKI["limits_config"]["allow_structured_metadata"] is True


def test_everybody_else_is_out_of_reach() -> None:
    internal = {name for name, network in compose_file.load()["networks"].items() if network.get("internal")}
    assert internal == {"private", "entry", "observability", "store"}
    assert {name for name in OBSERVERS if networks(name) - internal} == {"alertmanager", "grafana"}
    assert {name for name in SERVICES if "operators" in SERVICES[name].get("networks", [])} == {"alertmanager", "grafana"}
    assert {name for name in OBSERVERS if "private" in networks(name)} == {"otel-collector", "prometheus", "alertmanager"}
    assert not [name for name in SERVICES if name not in OBSERVERS and "observability" in SERVICES[name].get("networks", [])]


def test_grafana_alone_is_published_and_on_loopback_whatever_the_others_are() -> None:
    assert [name for name in OBSERVERS if "ports" in SERVICES[name]] == ["grafana"]
    [port] = SERVICES["grafana"]["ports"]
    assert compose_file.resolve(port, {"PUBLISH_ADDRESS": "0.0.0.0"}) == "127.0.0.1:3005:3000"
    taken = {entry for name in SERVICES if name != "grafana" for entry in SERVICES[name].get("ports", [])}
    assert not [entry for entry in taken if compose_file.resolve(entry, {}).split(":")[1] == "3005"]


# --- containers -----------------------------------------------------------------------------------------------------


def megabytes(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(m|g|MiB)", text).groups()  # type: ignore[union-attr]
    return int(number) * (1024 if unit == "g" else 1)


@pytest.mark.parametrize("service", sorted(OBSERVERS))
def test_it_is_pinned_bounded_and_nobody_in_particular(service: str) -> None:
    one = OBSERVERS[service]
    assert re.fullmatch(r"[\w.-]+/[\w.-]+:v?\d+\.\d+\.\d+", one["image"])
    assert int(one["user"].partition(":")[0]) > 0
    assert one["read_only"] is True
    assert one["restart"] == "unless-stopped"
    limit = megabytes(one["mem_limit"])
    if (soft := one.get("environment", {}).get("GOMEMLIMIT")) is not None:
        assert megabytes(soft) < limit
    assert list(one["depends_on"]) == ["init"]


@pytest.mark.parametrize(
    ("service", "least", "below", "why"),
    [
        ("loki", (3, 7), (4,), "the program asks itself how it is"),
        ("otel-collector", (0, 144), (1,), "its exporter has this name"),
        ("prometheus", (3,), (4,), "there is a wget for the health check"),
        ("jaeger", (2,), (3,), "it is made of the collector's parts"),
        # Later versions load Jaeger as a plugin, and no plugin is loaded.
        ("grafana", (12,), (13, 2), "it has a source for Jaeger in itself"),
    ],
)
def test_a_version_is_one_that_has_what_is_asked_of_it(service: str, least: tuple[int, ...], below: tuple[int, ...], why: str) -> None:
    """As the page says under "Newer images"."""
    version = tuple(int(part) for part in OBSERVERS[service]["image"].rpartition(":")[2].removeprefix("v").split("."))
    assert least <= version < below, why


def test_nothing_of_the_mesh_waits_for_any_of_them() -> None:
    assert not [name for name, service in SERVICES.items() if set(service.get("depends_on", {})) & set(OBSERVERS)]


@pytest.mark.parametrize("service", sorted(set(OBSERVERS) - {"otel-collector"}))
def test_it_is_asked_where_it_answers(service: str) -> None:
    kind, *command = OBSERVERS[service]["healthcheck"]["test"]
    assert kind == "CMD"
    urls = [word for word in command if word.startswith("http://")]
    if service == "loki":
        assert command == ["/usr/bin/loki", "-health"]
        assert LOKI["server"]["http_listen_port"] == 3100, "the program looks there and nowhere else"
        return
    parts = urlsplit(urls[0])
    assert parts.hostname == "127.0.0.1"
    if service == "jaeger":
        assert JAEGER["extensions"]["healthcheckv2"]["http"]["endpoint"] == parts.netloc
        assert JAEGER["extensions"]["healthcheckv2"]["use_v2"] is True
    else:
        assert parts.port in LISTENS[service]


def written_by(service: str) -> set[str]:
    """Return the folders where the service keeps what outlives its container."""
    badger = JAEGER["extensions"]["jaeger_storage"]["backends"]["traces"]["badger"]
    return {
        "prometheus": {option("prometheus", "storage.tsdb.path")},
        "alertmanager": {option("alertmanager", "storage.path")},
        "loki": {LOKI["common"]["path_prefix"]},
        "jaeger": {str(Path(place).parent) for place in badger["directories"].values()},
        # Where its image keeps it.
        "grafana": {"/var/lib/grafana"},
    }[service]


@pytest.fixture(scope="module")
def handed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Volume -> the files that `init` writes there."""
    folder = tmp_path_factory.mktemp("init")
    home = homes.locate({"AIMESH_HOME": str(folder)})
    initialization.ensure(home, {}, folder)
    return dict(containers.hand_out_program().recipients(home, MeshName("home")))


@pytest.mark.parametrize("service", ["prometheus", "alertmanager", "loki", "jaeger", "grafana"])
def test_what_it_keeps_is_on_a_volume_of_its_own(service: str, handed: dict[str, Any]) -> None:
    volumes = dict(reversed(entry.split(":")[:2]) for entry in SERVICES[service]["volumes"])
    assert {volumes[place] for place in written_by(service)} == {f"{service}-data"}
    assert f"{service}-data" in compose_file.load()["volumes"]
    owner = int(SERVICES[service]["user"].partition(":")[0])
    assert handed[f"{service}-data"].user == owner
    assert not handed[f"{service}-data"].files
    for secrets in {volumes.get("/run/aimesh")} - {None}:
        assert handed[secrets].user == owner


def days(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([dh])", text).groups()  # type: ignore[union-attr]
    return int(number) / (24 if unit == "h" else 1)


def test_everything_ends_some_day() -> None:
    limits = LOKI["limits_config"]
    assert days(limits["retention_period"]) == 90
    assert days(limits["max_query_length"]) >= days(limits["retention_period"])
    # Without these settings, Loki never deletes anything.
    assert LOKI["compactor"]["retention_enabled"] is True
    assert LOKI["compactor"]["delete_request_store"] == LOKI["schema_config"]["configs"][0]["object_store"] == "filesystem"
    badger = JAEGER["extensions"]["jaeger_storage"]["backends"]["traces"]["badger"]
    assert badger["ephemeral"] is False
    assert days(badger["ttl"]["spans"]) == 7
    assert days(option("prometheus", "storage.tsdb.retention.time")) == 30
    assert option("prometheus", "storage.tsdb.retention.size") == "8GB"


def test_nobody_comes_in_without_the_password_and_nothing_goes_out(handed: dict[str, Any]) -> None:
    given = compose_file.environment_of("grafana")
    off = ("AUTH_ANONYMOUS_ENABLED", "USERS_ALLOW_SIGN_UP", "ANALYTICS_REPORTING_ENABLED", "ANALYTICS_CHECK_FOR_UPDATES")
    off += ("ANALYTICS_CHECK_FOR_PLUGIN_UPDATES", "NEWS_NEWS_FEED_ENABLED", "PLUGINS_PLUGIN_ADMIN_ENABLED")
    assert {given[f"GF_{name}"] for name in off} == {"false"}
    assert given["GF_PLUGINS_PREINSTALL_DISABLED"] == given["GF_SECURITY_DISABLE_GRAVATAR"] == "true"
    assert "GF_SECURITY_ADMIN_PASSWORD" not in given
    secrets = handed["grafana"].files
    assert {value for name, value in given.items() if name.endswith("__FILE")} == {f"/run/aimesh/{name}" for name in secrets}
    assert len({value.strip() for value in secrets.values()}) == len(secrets) == 2
    assert all(len(value.strip()) >= 32 for value in secrets.values())
    assert LOKI["analytics"]["reporting_enabled"] is False


def test_without_addresses_alertmanager_gets_an_empty_file(handed: dict[str, Any]) -> None:
    assert handed["alertmanager"].files == {"alertmanager.env": b""}
