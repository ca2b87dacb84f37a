"""Define the settings of web."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from services.web import install_script
from shared import addresses, client_address, node
from shared.config import Port, Variable
from shared.identity import install_line
from shared.node.http_tunnel import TunnelTarget

#: 256 random bits are at least this long in base64 or hex.
MIN_SECRET_CHARACTERS = 32


class WebSettings(node.PublicNodeSettings, frozen=True, kw_only=True):
    port: Annotated[Port, Variable("WEB_SERVICE_PORT", "the port of the pages and the API")] = 3000
    secret: Annotated[
        str,
        Meta(min_length=MIN_SECRET_CHARACTERS),
        Variable(
            "WEB_SECRET", "signs form tokens; at least 32 random characters (openssl rand -hex 32), the same on all replicas", secret=True
        ),
    ]
    gateway_url: Annotated[
        str, Variable("GATEWAY_URL", "the URL of the gateway's HTTP server; web forwards the paths of its APIs and /docs to it")
    ] = "http://127.0.0.1:3002"
    web_hop_secret: client_address.Secret = None
    gateway_ca_file: Annotated[
        Path | None, Variable("GATEWAY_CA_FILE", "the CA of the gateway's certificate, if GATEWAY_URL is https and the CA is not public")
    ] = None
    request_timeout_seconds: Annotated[
        float,
        Meta(gt=0, le=3600),
        Variable(
            "REQUEST_TIMEOUT_SECONDS", "the same value as for the gateway; web waits 30 s longer, so that the gateway times out first"
        ),
    ] = 300
    queue_start_seconds: Annotated[
        float, Meta(gt=0, le=3600), Variable("QUEUE_START_SECONDS", "the same value as for the gateway; web waits that much longer, too")
    ] = 300
    nats_websocket: Annotated[
        str | None,
        Variable("NATS_WEBSOCKET", "host:port of NATS's WebSockets, which /mesh leads to: nodes join by HTTPS then"),
    ] = None
    public_url: Annotated[str, Variable("PUBLIC_URL", "the URL that users open, if a proxy is in front of web")] = ""
    public_key_pin: install_line.PublicKeyPin = None
    install_folder: Annotated[
        Path | None,
        Variable("INSTALL_FOLDER", "the package index that web serves at /install; by default `install` in the folder of its Python"),
    ] = None
    money: Annotated[
        Literal["on", "off"], Variable("MONEY", "the same value as for the gateway; on: pages show the plan, invoices and customers")
    ] = "off"
    pricing_page: Annotated[
        Literal["on", "off"], Variable("PRICING_PAGE", "on: anyone can see the plans for sale and the prices of models at /pricing")
    ] = "off"
    password_min_length: Annotated[int, Variable("PASSWORD_MIN_LENGTH", "the minimum length of passwords")] = 8

    @property
    def package_index(self) -> Path:
        return self.install_folder or install_script.default_folder()

    @property
    def certificate_to_trust(self) -> Path | None:
        """Our certificate, if no authority signed it: then `make up` makes it the gateway's CA too."""
        return self.tls_cert_file if self.tls_cert_file == self.gateway_ca_file else None

    @property
    def tunnel(self) -> TunnelTarget | None:
        found = addresses.read_place(self.nats_websocket or "")
        return None if found is None else TunnelTarget(addresses.MESH_PATH, *found)

    def mistakes(self) -> Iterator[str]:
        yield from super().mistakes()
        if self.nats_websocket is not None and self.tunnel is None:
            yield f"NATS_WEBSOCKET: {self.nats_websocket!r} is not host:port"
        if not _is_origin(self.gateway_url):
            yield f"GATEWAY_URL: {self.gateway_url!r} is not a URL without a path, such as http://127.0.0.1:3002"
        if self.public_url and not _is_origin(self.public_url):
            yield f"PUBLIC_URL: {self.public_url!r} is not a URL without a path, such as https://ai.example.org"


def _is_origin(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # Reading the port raises ValueError for an invalid one.
        _ = parts.port
    except ValueError:
        return False
    plain = not (parts.query or parts.fragment or parts.username or parts.password)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.path in ("", "/") and plain
