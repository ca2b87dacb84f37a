"""compose.yaml is a valid compose file, gives each service what it reads and nothing else, and opens two ports, or three with Grafana's."""

import importlib
import importlib.util
import itertools
import json
import re
from importlib import resources
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from services.gateway.settings import GatewaySettings
from shared import config, node
from shared.stores import object_credentials
from stack import settings
from tests.deploy import compose_file, containers

SERVICES = compose_file.services()
OUTSIDE = "deploy/outside.compose.yaml"
#: Settings of `make up` that compose.yaml sets itself, or whose file must be mounted.
NOT_FROM_DOTENV = {
    *(
        "NATS_CA_FILE",
        "NATS_CERT_FILE",
        "NATS_KEY_FILE",
        "NATS_CREDS_FILE",
        "ALLOW_PLAIN_NATS",
        "NODE_BINARY",
        "INSTALL_FOLDER",
        "GATEWAY_URL",
        "NATS_WEBSOCKET",
        "GATEWAY_CA_FILE",
    ),
    *("BIND_HOST", "ALLOW_PLAIN_HTTP", "TLS_CERT_FILE", "TLS_KEY_FILE", "METRICS_TOKEN", "MODEL_STORE"),
    *("DATA_KEY_OLD", "OIDC_CLIENT_SECRET", "MESH_CA_KEY_FILE", "MESH_CA_NEXT_KEY_FILE"),
    # aicli writes them.
    *(name for name in ("FRONT_SERVER_FILE", "FRONT_CHOICE_FILE") if name in settings.PASSED),
}


#: Settings of `make up` that some services need only outside of containers: init hands out the credentials of the gateway's stores, and no
#: proxy reaches auth and metrics.
NOT_OF_CONTAINERS = {
    "auth": {"TRUSTED_PROXIES"},
    "metrics": {"TRUSTED_PROXIES"},
    "gateway": {*object_credentials.STORES},
}


#: On a volume that auth, gateway and the backup agent share.
LOG = "/var/lib/aimesh/recovery_log"


def declared_by(service: str) -> set[str]:
    """Return the variables that the service's program reads."""
    module = importlib.import_module(compose_file.module_of(service) + ".settings")
    (kind,) = (
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, node.NodeSettings) and kind.__module__ == module.__name__
    )
    return {name for setting in config.settings_of(kind) for name in setting.variable.names}


def mounts_of(service: str) -> dict[str, str]:
    """Return path in the container -> its volume or folder."""
    return {
        parts[1]: parts[0] for parts in (entry.split(":") for entry in SERVICES[service].get("volumes", []) if not entry.startswith("$"))
    }


@pytest.mark.parametrize("path", ["compose.yaml", OUTSIDE])
def test_the_file_fits_the_compose_specification(path: str) -> None:
    vendored = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = json.loads(vendored.read_text(encoding="utf-8"))
    # Compose resolves anchors and `x-` parts before it validates; so does the YAML loader.
    mistakes = [error.message for error in jsonschema.validators.validator_for(schema)(schema).iter_errors(compose_file.load(path))]
    assert not mistakes


@pytest.mark.parametrize("service", compose_file.OURS)
def test_the_command_is_a_module_of_ours(service: str) -> None:
    assert importlib.util.find_spec(compose_file.module_of(service) + ".__main__")


@pytest.mark.parametrize("service", compose_file.OURS)
def test_every_variable_is_a_setting_of_that_service(service: str) -> None:
    given = {name.removesuffix("_FILE") if name not in declared_by(service) else name for name in compose_file.environment_of(service)}
    assert given - declared_by(service) == set()


def test_it_takes_every_setting_that_make_up_takes() -> None:
    taken = compose_file.variables()
    assert {name for name in settings.PASSED if name not in taken and f"{name}_FILE" not in taken} == NOT_FROM_DOTENV


@pytest.mark.parametrize("service", ["auth", "gateway", "metrics", "web"])
def test_each_service_gets_every_setting_that_make_up_gives_it(service: str) -> None:
    given = {each for name in compose_file.environment_of(service) for each in (name, name.removesuffix("_FILE"))}
    passed = {name for name, services in settings.PASSED.items() if service in services}
    assert passed - given - NOT_FROM_DOTENV == NOT_OF_CONTAINERS.get(service, set())


def test_it_takes_every_variable_of_the_specification() -> None:
    ports = {f"{service}_SERVICE_PORT" for service in ("AUTH", "GATEWAY", "INFERENCE", "METRICS", "WEB")}
    others = {
        "DATABASE_URL",
        "OLLAMA_URL",
        "OPENAI_API_KEY",
        "DEFAULT_RATE_LIMIT",
        "PREMIUM_RATE_LIMIT",
        "PROMETHEUS_PORT",
        "METRICS_ENABLED",
    }
    assert (ports | others) - compose_file.variables() == set()


def test_the_example_names_only_variables_that_are_read() -> None:
    example = re.findall(r"^#?([A-Z_]+)=", (compose_file.ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name in example if not name.startswith("COMPOSE_")]
    assert {name for name in example if not name.startswith("COMPOSE_")} - compose_file.variables() == set()


@pytest.mark.parametrize(
    ("service", "name", "default"),
    [("auth", "AUTH_SERVICE_PORT", "3001"), ("metrics", "METRICS_SERVICE_PORT", "3004"), ("inference", "INFERENCE_SERVICE_PORT", "3003")],
)
def test_a_port_that_is_not_published_changes_inside(service: str, name: str, default: str) -> None:
    assert compose_file.environment_of(service)[name] == default
    assert compose_file.environment_of(service, {name: "4001"})[name] == "4001"


def test_an_ollama_of_your_own_needs_no_container_of_it() -> None:
    worker = SERVICES["inference-ollama"]
    assert set(worker["profiles"]) - set(SERVICES["ollama"]["profiles"]) == {"own-ollama"}
    assert worker["depends_on"]["ollama"]["required"] is False
    assert compose_file.environment_of("inference-ollama", {"OLLAMA_URL": "http://gpu:11434"})["OLLAMA_URL"] == "http://gpu:11434"


def test_the_file_for_servers_outside_only_adds_a_network() -> None:
    added = compose_file.load(OUTSIDE)["services"]
    assert set(added) <= set(SERVICES)
    assert all(service == {"networks": ["public"]} for service in added.values())


@pytest.mark.parametrize("service", compose_file.OURS)
def test_every_setting_that_must_be_given_is_given(service: str) -> None:
    module = importlib.import_module(compose_file.module_of(service) + ".settings")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]
    needed = {setting.variable.name for kind in kinds for setting in config.settings_of(kind) if setting.default is None}
    environment = compose_file.environment_of(service)
    assert not [name for name in needed if name not in environment and f"{name}_FILE" not in environment]


#: Set if there is a standby.
READ_URLS = tuple(f"{prefix}DATABASE_READ_URL_FILE" for prefix in ("", "GATEWAY_", "METRICS_"))


@pytest.mark.parametrize("service", compose_file.OURS)
def test_secrets_come_as_files_from_the_services_own_volume(service: str) -> None:
    module = importlib.import_module(compose_file.module_of(service) + ".settings")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]
    secret = {setting.variable.name for kind in kinds for setting in config.settings_of(kind) if setting.variable.secret}
    environment = compose_file.environment_of(service)
    assert not secret & set(environment)
    assert mounts_of(service)["/run/aimesh"] == service
    # This file is lost with the container; auth then sends its content again.
    assert environment.pop("MESH_STATE_FILE") == "/tmp/node.mesh"
    if service != "auth":
        assert environment.pop("NODE_KEY_FILE") == "/tmp/node.nk", "two replicas would have one key"
    for kept in ("JOURNAL_FILE", "RECEIPTS_FILE"):
        if (path := environment.pop(kept, None)) is not None:
            # This must outlive the container, and each replica has its own.
            assert Path(path).parent.name == "{node}"
            assert mounts_of(service)[str(Path(path).parents[1])] == f"{service}-data"
            # The previous version wrote the file there, and the replicas adopt it.
            assert str(Path(path).parents[1]) == "/var/lib/aimesh"
    # The backup agent reads the anchors there.
    assert Path(environment.pop("AUDIT_ANCHOR_FILE", f"{LOG}/x")).parent == Path(LOG)
    # Files that operators supply in a host folder: only those who mount one set its variable.
    for owns in (
        "OIDC_CA_FILE",
        "OTEL_EXPORTER_OTLP_HEADERS_FILE",
        "SMTP_URL_FILE",
        "POOLS_FILE",
        "STRIPE_SECRET_KEY_FILE",
        "STRIPE_WEBHOOK_SECRET_FILE",
        "PADDLE_API_KEY_FILE",
        "PADDLE_WEBHOOK_SECRET_FILE",
        *(setting.variable.name for _, setting in config.settings_of_features() if setting.variable.name.endswith("_FILE")),
        *READ_URLS,
    ):
        assert environment.pop(owns, "") == ""
    for name in {f"{setting.variable.name}_FILE" for _, setting in config.settings_of_features() if setting.variable.secret}:
        assert environment.pop(name, "") in {"", f"/run/aimesh/{name.removesuffix('_FILE').lower()}"}
    assert all(value.startswith("/run/aimesh/") for name, value in environment.items() if name.endswith("_FILE"))


def test_no_two_containers_share_secrets() -> None:
    everybody = [volume for service in SERVICES if service != "init" for volume in set(mounts_of(service).values())]
    # The step that creates PostgreSQL's roles also reads PostgreSQL's volume; the recovery log contains no secret.
    assert sorted(volume for volume in set(everybody) if everybody.count(volume) > 1) == ["postgres", "recovery-data"]
    assert "home" not in everybody


def test_only_the_proxy_and_grafana_publish_ports_and_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    resolved = {name: [compose_file.resolve(port, {}) for port in ports] for name, ports in published.items()}
    assert resolved == {"proxy": ["127.0.0.1:3000:3000", "127.0.0.1:3002:3002"], "grafana": ["127.0.0.1:3005:3000"]}
    # A bridge network would hide other machines from these two. They have no secret except their own key, and start only on demand.
    on_the_host = [name for name, service in SERVICES.items() if service.get("network_mode") == "host"]
    assert on_the_host == ["dht", "relay"]
    assert {tuple(SERVICES[name]["profiles"]) for name in on_the_host} == {("hyperswarm",)}


def test_all_but_the_public_two_those_for_other_backends_and_who_looks_are_on_the_private_network_alone() -> None:
    outside = {name for name, service in SERVICES.items() if service.get("networks", ["none"]) != ["private"]}
    # test_observability covers the networks of the monitoring programs.
    looking = {name for name in outside if SERVICES[name].get("profiles") == ["observability"]}
    assert outside - looking == {
        *("init", "gateway", "web", "proxy", "dht", "relay", "backup", "s3"),
        *("ollama", "inference-ollama", "inference-openai", "inference-http"),
    }
    assert compose_file.load()["networks"]["private"]["internal"] is True
    assert SERVICES["init"]["network_mode"] == "none"


def test_web_and_the_gateway_believe_the_proxy_and_web_about_addresses_and_nobody_else() -> None:
    networks = compose_file.load()["networks"]
    subnets = {name: network["ipam"]["config"][0]["subnet"] for name, network in networks.items() if network and "ipam" in network}
    trusted = {service: compose_file.environment_of(service).get("TRUSTED_PROXIES") for service in compose_file.OURS}
    assert {service: whom for service, whom in trusted.items() if whom} == dict.fromkeys(("gateway", "web"), subnets["entry"])
    assert [name for name, service in SERVICES.items() if "entry" in service.get("networks", ())] == ["gateway", "web", "proxy"]
    assert networks["entry"]["internal"] is True
    for one, other in itertools.combinations(subnets.values(), 2):
        assert not ip_network(one).overlaps(ip_network(other))
    # And requests come from that network: only it has these names.
    aliases = {name: SERVICES[name]["networks"]["entry"]["aliases"] for name in ("gateway", "web")}
    assert aliases == {"gateway": ["gateway-entry"], "web": ["web-entry"]}
    assert compose_file.environment_of("web")["GATEWAY_URL"] == "http://gateway-entry:3002"
    # For web, the proxy trusts a proxy on this host.
    proxies = containers.hand_out_program().OUTER_PROXIES
    assert proxies == {"web": networks["public"]["ipam"]["config"][0]["gateway"], "gateway": ""}


def test_the_proxy_finds_the_replicas_and_waits_longer_than_a_gateway() -> None:
    lines = [line.split() for line in compose_file.mounted("proxy")["/usr/local/etc/haproxy/haproxy.cfg"].read_text("utf-8").splitlines()]
    assert len(lines) <= 60
    targets = {line[-1] for line in lines if line[:1] == ["server-template"]}
    assert targets == {"web-entry:3000", "gateway-entry:3002"}
    longest = next(each for each in config.settings_of(GatewaySettings) if each.variable.name == "REQUEST_TIMEOUT_SECONDS")
    assert "3600" in str(longest.type), "the longest time of a request has changed"
    assert {line[2] for line in lines if line[:2] in (["timeout", "client"], ["timeout", "server"])} == {"3615s"}


@pytest.mark.parametrize("service", [*compose_file.OURS, "proxy"])
def test_a_health_check_asks_for_readiness(service: str) -> None:
    test = SERVICES[service]["healthcheck"]["test"]
    assert "/readyz" in test[-1]
    if service not in ("gateway", "web", "proxy"):
        port = compose_file.environment_of(service)[f"{module_name(service).upper()}_SERVICE_PORT"]
        assert f":{port}/readyz" in compose_file.resolve(test[-1], {})


def module_name(service: str) -> str:
    return compose_file.module_of(service).rpartition(".")[2]


def test_podman_can_run_it() -> None:
    assert "configs" not in compose_file.load()
    for name, service in SERVICES.items():
        assert "configs" not in service, f"{name}: podman-compose ignores configs"
        for entry in service.get("tmpfs", ()):
            assert entry.endswith(":mode=1777"), f"{name}: podman refuses uid= of a tmpfs"


@pytest.mark.parametrize("name", ["gateway", "inference", "metrics", "web"])
def test_a_replica_has_no_name_address_or_port_of_its_own(name: str) -> None:
    assert not {"container_name", "hostname", "ports"} & SERVICES[name].keys()
    assert "ipv4_address" not in str(SERVICES[name]["networks"])


def is_root(service: dict[str, Any]) -> bool:
    return service.get("user", "").startswith("0")


def test_containers_are_confined() -> None:
    # Our images set their user themselves (test_dockerfiles); Ollama's runs as root and has no secret of ours.
    for name, service in SERVICES.items():
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged"), name
        if name != "ollama":
            assert service["cap_drop"] == ["ALL"], name
        if name not in ("ollama", "aicli"):
            assert service["read_only"] is True, name
    assert [name for name, service in SERVICES.items() if is_root(service)] == ["init"]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_an_image_is_built_here_or_pinned_to_a_version(name: str) -> None:
    service = SERVICES[name]
    image = service["image"]
    if image.startswith("aimesh-"):
        assert any(other.get("build") and other["image"] == image for other in SERVICES.values())
    else:
        assert any(digit.isdigit() for digit in image.partition(":")[2]), f"{image} names no version"


def test_servers_have_a_health_check_and_are_waited_for() -> None:
    for server in ("postgres", "valkey", "nats"):
        assert SERVICES[server]["healthcheck"]["test"]
        assert SERVICES[server]["depends_on"]["init"]["condition"] == "service_completed_successfully"
    # Its command waits for PostgreSQL.
    assert set(SERVICES["provision"]["depends_on"]) == {"init"}
    assert "until pg_isready" in SERVICES["provision"]["command"][0]
    for service in ("auth", "gateway"):
        assert SERVICES[service]["depends_on"]["postgres"]["condition"] == "service_healthy"
        assert SERVICES[service]["depends_on"]["provision"]["condition"] == "service_completed_successfully"
    for service in compose_file.OURS:
        assert SERVICES[service]["depends_on"]["nats"]["condition"] == "service_healthy"


def test_init_gives_to_every_container_that_has_a_volume_of_secrets() -> None:
    handed = {volume for target, volume in mounts_of("init").items() if target.startswith("/handed/")}
    wanted = {mounts_of(service)[place] for service in SERVICES for place in ("/run/aimesh", "/profile") if place in mounts_of(service)}
    wanted.add(mounts_of("backup")["/state"])
    kept = {volume for service in SERVICES if service != "init" for volume in mounts_of(service).values() if volume.endswith("-data")}
    assert {volume for volume in handed if not volume.endswith("-data")} == wanted
    assert {volume for volume in handed if volume.endswith("-data")} <= kept


def test_postgresql_lets_only_the_backup_role_copy_it_and_nobody_in_without_a_password() -> None:
    (place,) = (word.partition("=")[2] for word in SERVICES["postgres"]["command"] if word.startswith("hba_file="))
    text = compose_file.mounted("postgres")[place].read_text(encoding="utf-8")
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    assert {line[-1] for line in lines} == {"scram-sha-256"}
    assert [line[:3] for line in lines if line[1] == "replication"] == [["host", "replication", "backup"]]


def test_only_the_agent_reaches_the_s3_server() -> None:
    assert [name for name, service in SERVICES.items() if "store" in service.get("networks", [])] == ["backup", "s3"]
    assert SERVICES["s3"]["networks"] == ["store"]
    command = SERVICES["s3"]["command"]
    assert {"-ip.bind=127.0.0.1", "-s3.ip.bind=0.0.0.0", "-s3.config=/run/aimesh/s3.json"} <= set(command)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_files_that_are_mounted_exist(name: str) -> None:
    for source in compose_file.mounted(name).values():
        assert source.exists()


def test_the_gateway_allows_the_provider_whose_key_is_set() -> None:
    def allowed(**dotenv: str) -> str:
        return compose_file.environment_of("gateway", dotenv)["EXTERNAL_PROVIDERS"]

    assert allowed() == ""
    assert allowed(OPENAI_API_KEY="sk-x") == "openai"
    assert allowed(OPENAI_API_KEY="sk-x", EXTERNAL_PROVIDERS="acme") == "acme"
