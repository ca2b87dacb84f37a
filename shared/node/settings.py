"""What every service reads from its environment; each service's own settings extend it."""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from shared import errors
from shared.config import Variable
from shared.types import MeshName

LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``port`` is added by each service, under its own variable."""

    mesh: Annotated[MeshName, Variable("MESH_NAME", "the mesh that this node belongs to")] = MeshName("home")
    nats_url: Annotated[str, Variable("NATS_URL", "the NATS server; several with commas; tls:// beyond loopback")] = "nats://127.0.0.1:4222"
    allow_plain_nats: Annotated[bool, Variable("ALLOW_PLAIN_NATS", "speak nats:// to another host, as on a private container network")] = (
        False
    )
    node_key_file: Annotated[Path, Variable("NODE_KEY_FILE", "the file with this node's key, an nkey seed; aicli stack init makes it")]
    host: Annotated[str, Variable("BIND_HOST", "the address to listen on")] = "127.0.0.1"
    allow_plain_http: Annotated[bool, Variable("ALLOW_PLAIN_HTTP", "listen beyond loopback without TLS, as behind a proxy that has it")] = (
        False
    )
    tls_cert_file: Annotated[Path | None, Variable("TLS_CERT_FILE", "the certificate chain; HTTPS instead of HTTP")] = None
    tls_key_file: Annotated[Path | None, Variable("TLS_KEY_FILE", "the certificate's key")] = None
    metrics_enabled: Annotated[bool, Variable("METRICS_ENABLED", "serve /metrics")] = True
    log_level: Annotated[str, Variable("LOG_LEVEL", "debug, info, warning or error")] = "info"
    log_format: Annotated[str, Variable("LOG_FORMAT", "json, or text for people")] = "json"

    def check(self) -> None:
        """What cannot be said field by field; raises BadSettings."""
        mistakes = [*self._nats_mistakes(), *self._http_mistakes()]
        if self.log_level.lower() not in {"debug", "info", "warning", "error"}:
            mistakes.append("LOG_LEVEL: say debug, info, warning or error")
        if self.log_format not in {"json", "text"}:
            mistakes.append("LOG_FORMAT: say json or text")
        if mistakes:
            raise errors.BadSettings("the settings cannot work:\n  " + "\n  ".join(mistakes), hint="see docs/reference/settings.md")

    def _nats_mistakes(self) -> list[str]:
        for url in self.nats_url.split(","):
            parts = urlsplit(url.strip())
            if parts.scheme == "nats" and parts.hostname not in LOOPBACK and not self.allow_plain_nats:
                return [f"NATS_URL: {parts.hostname} is not this machine; use tls:// (or ALLOW_PLAIN_NATS=true on a private network)"]
        return []

    def _http_mistakes(self) -> list[str]:
        mistakes = []
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            mistakes.append("TLS_CERT_FILE and TLS_KEY_FILE go together")
        if self.host not in LOOPBACK and self.tls_cert_file is None and not self.allow_plain_http:
            mistakes.append(
                f"BIND_HOST: {self.host} can be reached from elsewhere; set TLS_CERT_FILE and TLS_KEY_FILE, or ALLOW_PLAIN_HTTP=true"
            )
        return mistakes
