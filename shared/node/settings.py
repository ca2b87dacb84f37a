"""The settings that all services share. Each service's own settings extend these."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from shared import addresses, config
from shared.config import Settings, Variable
from shared.node import http_connection_limits
from shared.node.http_tunnel import TunnelTarget
from shared.transports.nats.login import NatsFiles
from shared.types import MeshName

if TYPE_CHECKING:
    from shared.api.service_settings import ShownSettings


class NodeSettings(Settings, frozen=True, kw_only=True):
    """Each service adds ``port`` under its own variable."""

    mesh: Annotated[MeshName, Variable("MESH_NAME", "the mesh that this node belongs to")] = MeshName("home")
    nats_url: Annotated[
        str,
        Variable(
            "NATS_URL",
            "the NATS server, or several, comma-separated; use tls:// beyond loopback; put user:password@ or token@ before the host if the "
            "server requires it; `none` to use only Hyperswarm",
        ),
    ] = "nats://127.0.0.1:4222"
    allow_plain_nats: Annotated[bool, Variable("ALLOW_PLAIN_NATS", "allow nats:// to another host, as on a private network")] = False
    nats_ca_file: Annotated[Path | None, Variable("NATS_CA_FILE", "the CA of the NATS server's certificate, if it is not a public one")] = (
        None
    )
    nats_cert_file: Annotated[
        Path | None, Variable("NATS_CERT_FILE", "the client certificate, if the NATS server requires one; tls:// only")
    ] = None
    nats_key_file: Annotated[Path | None, Variable("NATS_KEY_FILE", "the key of NATS_CERT_FILE")] = None
    nats_creds_file: Annotated[
        Path | None, Variable("NATS_CREDS_FILE", "a NATS credentials file (JWT and seed) for the login, instead of the node key")
    ] = None
    dht_bootstrap: Annotated[
        tuple[str, ...],
        Variable(
            "DHT_BOOTSTRAP",
            "the mesh's DHT nodes as host:port with commas, or `public`; empty disables Hyperswarm",
            on_all_replicas=True,
        ),
    ] = ()
    dht_relays: Annotated[tuple[str, ...], Variable("DHT_RELAYS", "comma-separated public keys of blind relays, in hex")] = ()
    swarm_clients: Annotated[
        tuple[str, ...],
        Variable("SWARM_CLIENTS", "public keys (hex, with commas) of @hyperswarm/rpc peers that may call as clients without a certificate"),
    ] = ()
    swarm_host: Annotated[
        str | None, Variable("SWARM_HOST", "the address that Hyperswarm binds to; loopback if all DHT nodes are on loopback")
    ] = None
    node_binary: Annotated[
        Path | None, Variable("NODE_BINARY", "the Node.js binary for Hyperswarm's sidecar; default: the one installed with aimesh")
    ] = None
    mesh_state_file: Annotated[
        Path | None, Variable("MESH_STATE_FILE", "the file for certificate and revocation list; default: beside the node key")
    ] = None
    node_key_file: Annotated[Path, Variable("NODE_KEY_FILE", "the file with this node's key, an nkey seed; `aicli stack init` creates it")]
    join_ticket_file: Annotated[
        Path | None,
        Variable("JOIN_TICKET_FILE", "a ticket with which this node joins the mesh over NATS at its first start"),
    ] = None
    host: Annotated[str, Variable("BIND_HOST", "the address to listen on")] = "127.0.0.1"
    allow_plain_http: Annotated[bool, Variable("ALLOW_PLAIN_HTTP", "listen beyond loopback without TLS, as behind a proxy with TLS")] = (
        False
    )
    tls_cert_file: Annotated[Path | None, Variable("TLS_CERT_FILE", "the certificate chain; enables HTTPS")] = None
    tls_key_file: Annotated[Path | None, Variable("TLS_KEY_FILE", "the certificate's key")] = None
    http_connections_per_address: Annotated[
        int,
        msgspec.Meta(ge=0),
        Variable("HTTP_CONNECTIONS_PER_ADDRESS", "concurrent HTTP connections per address, or per IPv6 /64; 0: no limit"),
    ] = 64
    trusted_proxies: Annotated[
        tuple[str, ...],
        Variable(
            "TRUSTED_PROXIES", "addresses and networks, with commas, whose X-Forwarded-For is trusted and whose connections are not counted"
        ),
    ] = ()
    drain_seconds: Annotated[
        float,
        msgspec.Meta(ge=0, le=3600),
        Variable("DRAIN_SECONDS", "time for running calls to end after SIGTERM; the process may take 15 s more"),
    ] = 30.0
    replica_check: Annotated[
        Literal["on", "off"],
        Variable("REPLICA_CHECK", "on: do not start without a key, database or address that a running replica of the service has"),
    ] = "on"
    metrics_enabled: Annotated[bool, Variable("METRICS_ENABLED", "serve /metrics")] = True
    traces_off: Annotated[bool, Variable("OTEL_SDK_DISABLED", "true disables tracing")] = False
    trace_ratio: Annotated[
        float,
        msgspec.Meta(ge=0.0, le=1.0),
        Variable("OTEL_TRACES_SAMPLER_ARG", "the share of requests starting here whose traces are kept; failed and slow ones always are"),
    ] = 0.01
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Variable("LOG_LEVEL", "debug, info, warning or error")] = "info"
    log_format: Annotated[Literal["json", "text"], Variable("LOG_FORMAT", "json, or text for reading")] = "json"

    @property
    def uses_nats(self) -> bool:
        return self.nats_url != "none"

    @property
    def nats_files(self) -> NatsFiles:
        return NatsFiles(ca=self.nats_ca_file, cert=self.nats_cert_file, key=self.nats_key_file, creds=self.nats_creds_file)

    @property
    def tunnel(self) -> TunnelTarget | None:
        """Return where the HTTP port passes WebSockets on to."""
        return None

    @property
    def makes_own_key(self) -> bool:
        """Return whether a missing key is created: a ticket or the CA's key makes it a member."""
        return self.join_ticket_file is not None

    @property
    def state_file(self) -> Path:
        """Return the file with this node's membership."""
        return self.mesh_state_file or self.node_key_file.with_suffix(".mesh")

    def warnings(self) -> Iterator[str]:
        """Return warnings about risky settings that were allowed explicitly."""
        if self.host not in addresses.LOOPBACK and self.tls_cert_file is None:
            yield f"HTTP on {self.host} has no TLS: keys and prompts can be read in transit, unless a proxy in front encrypts them"
        if self.uses_nats and self.allow_plain_nats and addresses.plain_hosts(self.nats_url):
            yield "NATS on another machine has no TLS: prompts can be read in transit, unless the network is private"

    def mistakes(self) -> Iterator[str]:
        try:
            plain = [] if self.allow_plain_nats or not self.uses_nats else addresses.plain_hosts(self.nats_url)
        except ValueError as error:
            yield f"NATS_URL: {error}"
        else:
            for host in plain:
                yield f"NATS_URL: {host} is not this machine; use tls:// (or ALLOW_PLAIN_NATS=true on a private network)"
        yield from _network_mistakes("TRUSTED_PROXIES", self.trusted_proxies)
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            yield "TLS_CERT_FILE and TLS_KEY_FILE go together"
        if self.host not in addresses.LOOPBACK and self.tls_cert_file is None and not self.allow_plain_http:
            yield f"BIND_HOST: {self.host} is reachable from other machines; set TLS_CERT_FILE and TLS_KEY_FILE, or ALLOW_PLAIN_HTTP=true"


#: For services with a schema.
Migrate = Annotated[
    Literal["on", "off"],
    Variable("MIGRATE", "off: do not migrate the schema at start, and do not start before `aicli stack migrate --pre` has done it"),
]
#: For services whose queries are marked `-- replica`.
READ_URL = "standbys of PostgreSQL, which answer reports, request lists and the history; one or several hosts"
ReadLagSeconds = Annotated[
    float, Meta(ge=1, le=300), Variable("DATABASE_READ_LAG_SECONDS", "the primary answers instead of a standby that is further behind")
]


class PublicNodeSettings(NodeSettings, frozen=True, kw_only=True):
    """For services whose port users reach, but whose /metrics and troubles they must not read."""

    metrics_networks: Annotated[
        tuple[str, ...],
        Variable(
            "METRICS_NETWORKS",
            "comma-separated addresses and networks that may read /metrics and all of /readyz here, in addition to this machine",
        ),
    ] = ()
    metrics_token: Annotated[
        Annotated[str, msgspec.Meta(min_length=16)] | None,
        Variable("METRICS_TOKEN", "requests with `Authorization: Bearer` and this token may read them from anywhere", secret=True),
    ] = None

    def mistakes(self) -> Iterator[str]:
        yield from super().mistakes()
        yield from _network_mistakes("METRICS_NETWORKS", self.metrics_networks)


def _network_mistakes(variable: str, texts: tuple[str, ...]) -> Iterator[str]:
    for text in texts:
        try:
            http_connection_limits.network(text)
        except ValueError:
            yield f"{variable}: {text!r} is neither an address nor a network such as 10.0.0.0/8"


def list_settings(settings: config.Settings) -> "ShownSettings":
    """Return a service's settings without secrets, including those inside URLs."""
    # Imported here, because `aicli` imports this module and needs neither.
    from shared.api.service_settings import ShownSetting, ShownSettings  # noqa: PLC0415
    from shared.telemetry import redaction  # noqa: PLC0415

    return ShownSettings(
        tuple(
            ShownSetting(
                setting.variable.name,
                redaction.text(value),
                redaction.text(setting.default or ""),
                setting.variable.help,
                is_secret=setting.variable.secret,
            )
            for setting, value in config.shown(settings)
        )
    )
