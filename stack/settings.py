"""The settings of a stack: ports, embedded servers, and what each service gets of the user's settings.

Settings from the command line of ``make up`` or the environment are saved in the stack's home: plain ones in ``stack.env``, secrets in one
file each in ``secrets/environment``. An empty value removes a setting.
"""

import ipaddress
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from shared import addresses, config
from shared.config import Port, Variable
from shared.identity import node_keys
from shared.stores import object_credentials
from shared.types import MeshName
from stack.stack_home import StackHome, write_private

#: The stores of features that the gateway opens.
STORES_OF_FEATURES = [each.variable for service, each in config.settings_of_features() if each.variable.is_store and service == "gateway"]
#: The settings that OBJECT_STORE sets.
_STORES = ("MODEL_ORIGIN", *dict.fromkeys(each.variable.name for _, each in config.settings_of_features() if each.variable.is_store))
#: How NATS servers admit nodes: they ask auth, or have a static list.
NatsAuth = Literal["callout", "users"]


class StackSettings(config.Settings, frozen=True, kw_only=True):
    SERVICE = "stack"

    mesh: Annotated[MeshName, Variable("MESH_NAME", "name of the mesh this stack belongs to")] = MeshName("home")
    web_port: Annotated[Port, Variable("WEB_SERVICE_PORT", "port of the web pages")] = 3000
    auth_port: Annotated[Port, Variable("AUTH_SERVICE_PORT", "port of auth")] = 3001
    gateway_port: Annotated[Port, Variable("GATEWAY_SERVICE_PORT", "port of the public API")] = 3002
    inference_port: Annotated[Port, Variable("INFERENCE_SERVICE_PORT", "port of the first worker")] = 3003
    metrics_port: Annotated[Port, Variable("METRICS_SERVICE_PORT", "port of metrics")] = 3004
    echo_port: Annotated[Port | None, Variable("ECHO_SERVICE_PORT", "port of the echo worker; by default a free port, chosen once")] = None
    prometheus_port: Annotated[Port, Variable("PROMETHEUS_PORT", "port of the Prometheus endpoint for the whole mesh; 0 disables it")] = (
        9090
    )
    nats_port: Annotated[Port, Variable("NATS_PORT", "port of the embedded NATS server")] = 4222
    nats_web_port: Annotated[
        Port | None, Variable("NATS_WEB_PORT", "port of its WebSockets, for this machine only; by default a free port, chosen once")
    ] = None
    nats_url: Annotated[str | None, Variable("NATS_URL", "your own NATS server, instead of the embedded one", secret=True)] = None
    nats_ca_file: Annotated[Path | None, Variable("NATS_CA_FILE", "CA certificate of that NATS server")] = None
    nats_cert_file: Annotated[Path | None, Variable("NATS_CERT_FILE", "client certificate for that NATS server")] = None
    nats_key_file: Annotated[Path | None, Variable("NATS_KEY_FILE", "private key of NATS_CERT_FILE")] = None
    nats_creds_file: Annotated[Path | None, Variable("NATS_CREDS_FILE", "NATS credentials file, instead of the node keys")] = None
    redis_url: Annotated[str | None, Variable("REDIS_URL", "your own Redis or Valkey server, instead of the embedded one", secret=True)] = (
        None
    )
    database_url: Annotated[
        str | None, Variable("DATABASE_URL", "your own PostgreSQL server, instead of the embedded one", secret=True)
    ] = None
    auth_database_url: Annotated[str | None, Variable("AUTH_DATABASE_URL", "DATABASE_URL for auth only", secret=True)] = None
    gateway_database_url: Annotated[str | None, Variable("GATEWAY_DATABASE_URL", "DATABASE_URL for the gateway only", secret=True)] = None
    metrics_database_url: Annotated[
        str | None, Variable("METRICS_DATABASE_URL", "DATABASE_URL for the history of the metrics service only", secret=True)
    ] = None
    nats_auth: Annotated[
        NatsAuth | None,
        Variable(
            "NATS_AUTH",
            "callout: the NATS server asks auth about logins; users: it has a static list, nats/users.conf. Default: users with NATS_URL, "
            "callout without",
        ),
    ] = None
    backend: Annotated[str, Variable("INFERENCE_BACKEND", "backend of the first worker")] = "llama"
    external_providers: Annotated[
        tuple[str, ...],
        Variable("EXTERNAL_PROVIDERS", "providers that may get prompts, by default those of your upstreams; `none` for none"),
    ] = ()
    models_yaml: Annotated[Path | None, Variable("MODELS_YAML", "add a worker for the entries of this file with a service")] = None
    echo: Annotated[bool, Variable("AIMESH_ECHO", "add a worker that serves the synthetic model `echo`, for load tests")] = False
    host: Annotated[str, Variable("BIND_HOST", "address that gateway and web listen on; other services stay on loopback")] = "127.0.0.1"
    tls_cert_file: Annotated[Path | None, Variable("TLS_CERT_FILE", "TLS certificate for HTTPS on gateway and web")] = None
    lan: Annotated[
        str | None,
        Variable(
            "LAN",
            "1, or an IPv4 address of this machine: let other machines of its network use the stack, with a certificate made for the "
            "address; sets BIND_HOST, TLS_CERT_FILE, TLS_KEY_FILE and DHT_HOST",
        ),
    ] = None
    hyperswarm: Annotated[bool, Variable("HYPERSWARM", "let workers and clients join by ticket from anywhere; off: NATS only")] = True
    dht_bootstrap: Annotated[
        tuple[str, ...],
        Variable("DHT_BOOTSTRAP", "your own DHT nodes elsewhere (comma-separated host:port), or `public`, instead of the embedded ones"),
    ] = ()
    reach: Annotated[
        Literal["public"] | None, Variable("REACH", "public: let machines join from anywhere over the public DHT, as DHT_BOOTSTRAP=public")
    ] = None
    dht_host: Annotated[
        str, Variable("DHT_HOST", "IPv4 address or DNS name at which remote machines reach the embedded DHT nodes and the relay")
    ] = "127.0.0.1"
    dht_bind_host: Annotated[
        str | None,
        Variable("DHT_BIND_HOST", "address that they bind to; default DHT_HOST, or 0.0.0.0 if that is a name; use 0.0.0.0 behind a router"),
    ] = None
    dht_port: Annotated[Port, Variable("DHT_PORT", "first of three UDP ports of the embedded DHT nodes; the relay uses the fourth")] = 4737
    relay: Annotated[bool, Variable("MESH_RELAY", "run a blind relay here, for machines whose NATs block direct connections")] = False
    dht_relays: Annotated[tuple[str, ...], Variable("DHT_RELAYS", "public keys of blind relays elsewhere (hex, comma-separated)")] = ()
    log_retention_days: Annotated[
        int, Meta(ge=1, le=36500), Variable("LOG_RETENTION_DAYS", "days to keep program logs, up to 20 MiB per program")
    ] = 90
    object_store: Annotated[
        str | None,
        Variable("OBJECT_STORE", f"a store for all that needs one: sets {', '.join(_STORES[:-1])} and {_STORES[-1]}, unless they are set"),
    ] = None
    node_binary: Annotated[Path | None, Variable("NODE_BINARY", "Node.js program to use instead of the bundled one")] = None

    @property
    def nats_admission(self) -> NatsAuth:
        return self.nats_auth or ("users" if self.nats_url else "callout")

    @property
    def dht_nodes(self) -> tuple[str, ...]:
        """Return the DHT nodes to use instead of the embedded ones."""
        return (PUBLIC_DHT,) if self.reach == PUBLIC_DHT else self.dht_bootstrap

    def mistakes(self) -> Iterator[str]:
        yield from super().mistakes()
        if self.lan is not None and not (self.lan == FIND_ADDRESS or (is_ipv4(self.lan) and is_reachable_host(self.lan))):
            yield f"LAN: {self.lan!r} is neither 1 nor an IPv4 address of this machine, such as 192.168.1.20"
        if self.reach is not None and self.dht_bootstrap not in ((), (PUBLIC_DHT,)):
            yield "REACH=public uses the public DHT, and DHT_BOOTSTRAP names other nodes: remove one of the two"
        if not is_reachable_host(self.dht_host):
            yield f"DHT_HOST: {self.dht_host} is neither an IPv4 address of one machine, such as 203.0.113.5, nor a DNS name"
        if self.dht_bind_host is not None and not is_ipv4(self.dht_bind_host):
            yield f"DHT_BIND_HOST: {self.dht_bind_host} is not an IPv4 address"
        if not 0 < self.dht_port <= 65535 - DHT_NODES:
            yield f"DHT_PORT: {self.dht_port} leaves no room for {DHT_NODES} DHT nodes and a relay"
        yield from (f"DHT_BOOTSTRAP: {why}" for why in mistakes_of_nodes(self.dht_bootstrap))
        yield from (f"DHT_RELAYS: {key!r} is not a public key of 64 characters in hex" for key in self.dht_relays if not _is_key(key))


#: The DHT nodes in one process: a single node cannot introduce two others.
DHT_NODES = 3
PUBLIC_DHT = "public"
#: LAN without an address.
FIND_ADDRESS = "1"


def is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def is_reachable_host(text: str) -> bool:
    """Return whether other machines can use it: an IPv4 address of one machine, or a DNS name."""
    return not ipaddress.IPv4Address(text).is_unspecified if is_ipv4(text) else addresses.is_host_name(text)


def _is_key(text: str) -> bool:
    try:
        node_keys.raw_of_hex(text)
    except ValueError:
        return False
    return True


def mistakes_of_nodes(nodes: tuple[str, ...]) -> Iterator[str]:
    if PUBLIC_DHT in nodes and len(nodes) > 1:
        yield "`public` stands alone"
    for node in nodes:
        if node != PUBLIC_DHT and (mistake := addresses.mistake_of_node(node)):
            yield mistake


#: Settings passed through to services, and to the programs of features that are nodes.
OF_EVERY_NODE = """
    MESH_NAME NATS_CA_FILE NATS_CERT_FILE NATS_KEY_FILE NATS_CREDS_FILE ALLOW_PLAIN_NATS NODE_BINARY SWARM_CLIENTS LOG_LEVEL
    LOG_FORMAT OTEL_SDK_DISABLED OTEL_TRACES_SAMPLER_ARG METRICS_ENABLED HTTP_CONNECTIONS_PER_ADDRESS TRUSTED_PROXIES
"""
#: Settings passed through to services, by the services that read them. The plan provides the rest of a service's settings.
_PASSED_TO: dict[tuple[str, ...], str] = {
    ("auth", "gateway", "inference", "metrics", "web"): OF_EVERY_NODE,
    ("gateway", "web"): """
        METRICS_NETWORKS METRICS_TOKEN BIND_HOST ALLOW_PLAIN_HTTP TLS_CERT_FILE TLS_KEY_FILE REQUEST_TIMEOUT_SECONDS
        QUEUE_START_SECONDS
    """,
    ("auth",): """
        AUTH_SERVICE_PORT SESSION_TIMEOUT SESSION_LONGEST OPEN_REGISTRATION REGISTRATIONS_PER_ADDRESS ORGANISATIONS_PER_USER
        TICKET_BOOTSTRAP MESH_CA_KEY_FILE MESH_CA_NEXT_KEY_FILE ADMIN_MFA SIGNING_KEY_DAYS OIDC_ISSUER OIDC_CLIENT_ID OIDC_CLIENT_SECRET
        OIDC_NAME OIDC_SCOPES OIDC_GROUPS_CLAIM OIDC_ROLES OIDC_CA_FILE IAP_AUDIENCE IAP_KEYS_URL AUDIT_ANCHOR_FILE AUDIT_DAYS ERASURE_DAYS
        INVITATION_DAYS ENDED_KEY_DAYS SESSION_PROGRAM_DAYS DATA_KEY_OLD PUBLIC_NATS_URL OIDC_TIER INVITED_TIER SMTP_URL
        MAIL_FROM
    """,
    ("auth", "gateway"): "RECOVERY_LOG_DIR",
    ("gateway", "inference"): "HF_ENDPOINT",
    ("gateway", "metrics"): "DATABASE_READ_URL DATABASE_READ_LAG_SECONDS",
    ("auth", "gateway", "metrics"): "DATABASE_POOL MIGRATE",
    ("auth", "web"): "PASSWORD_MIN_LENGTH PUBLIC_KEY_PIN",
    ("auth", "gateway", "web"): "MONEY PUBLIC_URL",
    ("gateway",): """
        GATEWAY_DATABASE_READ_URL
        GATEWAY_SERVICE_PORT REQUEST_LOG_DAYS DEFAULT_RATE_LIMIT PREMIUM_RATE_LIMIT TIER_FREE TIER_PRO TIER_ENTERPRISE MODEL_LIMITS
        LIMITER_WITHOUT_VALKEY PRICE_PER_INPUT_TOKEN PRICE_PER_OUTPUT_TOKEN ROUTING_POLICY EXTERNAL_PROVIDERS QUEUE_SECONDS QUEUE_MOST
        CORS_ORIGINS RESPONSE_CACHE RESPONSE_CACHE_SECONDS RESPONSE_CACHE_MEGABYTES QUEUE_PER_USER MODEL_ALIASES DEFAULT_MODEL
        IMAGE_MAX_COUNT IMAGE_MAX_BYTES STORED_ITEMS_MEGABYTES UPSTREAM_MONTHLY MODEL_HUB
        CURRENCY SELLER_NAME SELLER_ADDRESS TAX_NAME TAX_PERCENT PAYMENTS STRIPE_SECRET_KEY_FILE STRIPE_WEBHOOK_SECRET_FILE STRIPE_API_URL
        STRIPE_TAX PADDLE_API_KEY_FILE PADDLE_WEBHOOK_SECRET_FILE PADDLE_API_URL MODEL_ORIGIN MODEL_ORIGIN_QUOTA POOLS_FILE
    """
    + " ".join(object_credentials.STORES),
    ("inference",): """
        INFERENCE_SERVICE_PORT INFERENCE_BACKEND MODELS MODELS_YAML MODELS_DIR MODELS_PULL MODEL_STORE MODEL_STORE_QUOTA ALLOW_MODEL_PULLS
        MODEL_TRUST MODEL_SHARE MODEL_COPY_RATE HF_TOKEN MODEL_MIRRORS MODEL_MEMORY PROMPT_CACHE_RAM MODEL_KEEP_ALIVE MODEL_SWAP_SECONDS
        MODELS_FOR
        ENGINE_KV_MODE ENGINE_KV_TYPE ENGINE_SLOTS ENGINE_QUEUE ENGINE_CONTEXT_TOKENS ENGINE_THREADS GPU_LAYERS ECHO_SLOTS ECHO_TOKEN_MS
        NODE_WATTS_IDLE NODE_WATTS_BUSY KWH_PRICE
    """,
    ("metrics",): """
        METRICS_DATABASE_READ_URL
        METRICS_SERVICE_PORT PROMETHEUS_PORT HISTORY_RAW_HOURS HISTORY_MINUTE_DAYS HISTORY_HOUR_DAYS METRICS_NAMESPACES
        OTEL_EXPORTER_OTLP_ENDPOINT OTEL_EXPORTER_OTLP_HEADERS
    """,
    ("web",): "WEB_SERVICE_PORT NATS_WEBSOCKET GATEWAY_URL GATEWAY_CA_FILE INSTALL_FOLDER PRICING_PAGE",
}
#: Variable -> services.
PASSED: dict[str, tuple[str, ...]] = {name: services for services, names in _PASSED_TO.items() for name in names.split()}
for _service, _setting in config.settings_of_features():
    if _service != StackSettings.SERVICE:
        PASSED[_setting.variable.name] = (*PASSED.get(_setting.variable.name, ()), _service)
#: Saved in separate files and passed on as NAME_FILE.
SECRET = frozenset(
    {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "HF_TOKEN",
        "METRICS_TOKEN",
        "OIDC_CLIENT_SECRET",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "SMTP_URL",
        "DATA_KEY_OLD",
        "DATABASE_READ_URL",
        "GATEWAY_DATABASE_READ_URL",
        "METRICS_DATABASE_READ_URL",
    }
) | {setting.variable.name for setting in config.settings_of(StackSettings) if setting.variable.secret}
SECRET |= {setting.variable.name for _, setting in config.settings_of_features() if setting.variable.secret}
#: Settings of features that name a file.
FILES_OF_FEATURES = frozenset(
    each.variable.name for _, each in config.settings_of_features() if each.type in (Path, Path | None)
) - frozenset(object_credentials.STORES)
#: Paths that the user gives relative to the current folder; services run elsewhere.
_PATHS = frozenset(
    {"NODE_BINARY", "MESH_CA_KEY_FILE", "MESH_CA_NEXT_KEY_FILE", "TLS_CERT_FILE", "TLS_KEY_FILE", "GATEWAY_CA_FILE"}
    | {"NATS_CA_FILE", "NATS_CERT_FILE", "NATS_KEY_FILE", "NATS_CREDS_FILE"}
    | {
        "MODELS_YAML",
        "MODELS_DIR",
        "MODEL_STORE",
        "MODEL_TRUST",
        "OIDC_CA_FILE",
        "AUDIT_ANCHOR_FILE",
        "RECOVERY_LOG_DIR",
    }
    | {*_STORES, "OBJECT_STORE", "GOOGLE_APPLICATION_CREDENTIALS", "POOLS_FILE", "INSTALL_FOLDER"}
    | FILES_OF_FEATURES
)


def known_names() -> frozenset[str]:
    """Return every variable that is saved between commands."""
    return frozenset(PASSED) | {setting.variable.name for setting in config.settings_of(StackSettings)}


def merge(recorded: Mapping[str, str], environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Merge the environment into the saved settings; an empty variable removes one. Pure."""
    merged = dict(recorded)
    for name in known_names():
        for variable in (name, f"{name}_FILE"):
            if variable not in environment:
                continue
            value = environment[variable].strip()
            # Only one of NAME and NAME_FILE is kept: the newer one.
            merged.pop(name, None)
            merged.pop(f"{name}_FILE", None)
            if value:
                is_path = (variable in _PATHS or variable not in known_names()) and "://" not in value
                merged[variable] = str((folder / Path(value).expanduser()).absolute()) if is_path else value
    for name in _STORES:
        # It follows OBJECT_STORE, unless it was chosen.
        if merged.get(name) in {None, recorded.get("OBJECT_STORE")}:
            merged.pop(name, None)
            merged |= {name: merged["OBJECT_STORE"]} if "OBJECT_STORE" in merged else {}
    for name, address in object_credentials.STORES.items():
        if not any(merged.get(store, "").startswith(address) for store in _STORES):
            merged.pop(name, None)
            merged.pop(f"{name}_FILE", None)
    return merged


def read_recorded(home: StackHome) -> dict[str, str]:
    try:
        text = home.settings_file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    pairs = (word.partition("=") for word in shlex.split(text, comments=True))
    return {name: value for name, _, value in pairs}


def record(home: StackHome, environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Save the user's settings. Return all that apply now, secrets as NAME_FILE. The home's folders must exist."""
    merged = merge(read_recorded(home), environment, folder)
    kept: dict[str, str] = {}
    for name, value in sorted(merged.items()):
        if name in SECRET:
            place = home.secrets / "environment" / name.lower()
            place.parent.mkdir(exist_ok=True, mode=0o700)
            write_private(place, value)
            kept[f"{name}_FILE"] = str(place)
        else:
            kept[name] = value
    header = "# Settings of this stack, saved by `make up`. To remove one: NAME= make up\n"
    write_private(home.settings_file, header + "".join(f"{name}={shlex.quote(value)}\n" for name, value in kept.items()))
    return kept


def load(recorded: Mapping[str, str]) -> StackSettings:
    """Raises BadSettings with all mistakes."""
    return config.load(StackSettings, recorded)
