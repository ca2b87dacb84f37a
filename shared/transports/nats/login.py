"""Logs in to a NATS server: with the node's key, a user and password, a token, or a credentials file, and optionally with a client
certificate."""

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared import errors
from shared.identity import base64url, login_tokens, node_keys
from shared.transports.nats.servers import ServerAddress

_JWT = re.compile(r"-----BEGIN NATS USER JWT-----\s+(\S+)\s+-{3,}END NATS USER JWT-{3,}")
_SEED = re.compile(r"-----BEGIN USER NKEY SEED-----\s+(\S+)\s+-{3,}END USER NKEY SEED-{3,}")
_MAX_CREDS_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsFiles:
    """Optional files for a connection to NATS."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    creds: Path | None = None


class NatsLoginRefused(errors.Unavailable):
    """The server does not accept the login. It may, later: others may have to change something first."""


class NatsLoginUnanswered(errors.Unavailable):
    """The server asks auth about the login, which does not answer."""


class NatsLogin:
    def __init__(
        self,
        key: node_keys.NodeKey,
        files: NatsFiles,
        servers: tuple[ServerAddress, ...],
        token: Callable[[str], str] = login_tokens.without,
    ) -> None:
        """``token`` returns what the node sends beside its key, for the server's nonce: see ``shared.identity.login_tokens``. Raises
        BadSettings for unusable files, and for credentials that would be ignored."""
        self.token = token
        #: Of the credentials file, if there is one; its key signs then.
        self.jwt: str | None = None
        self._key = key
        if files.creds is not None:
            self.jwt, self._key = _read_creds(files.creds)
        if self.jwt is not None and any(server.has_credentials for server in servers):
            raise errors.BadSettings("NATS_URL has a password or token, and NATS_CREDS_FILE is set", hint="use only one of them")
        if (files.cert is None) != (files.key is None):
            raise errors.BadSettings("NATS_CERT_FILE and NATS_KEY_FILE go together", hint="set both, or neither")
        if files.cert is not None and not all(server.tls for server in servers):
            raise errors.BadSettings("NATS_CERT_FILE requires TLS", hint="use tls:// in NATS_URL")
        #: None for the public CAs.
        self.context = _trusting(files)

    @property
    def node(self) -> str:
        return self._key.id

    def sign(self, nonce: str) -> bytes:
        return base64url.encode(self._key.sign_bare(nonce.encode())).encode()

    def explain(self, error: Exception | None, servers: tuple[ServerAddress, ...]) -> errors.Unavailable:
        """Return why there is no connection, and what to do."""
        where = ", ".join(str(server) for server in servers)
        if isinstance(error, errors.Unavailable):
            return error
        message = error.message.lower() if isinstance(error, errors.NotAllowed) else ""
        if isinstance(error, errors.NotAllowed) and "auth" in message and "timeout" not in message:
            what, hint = self._refused(servers)
            # The server's text distinguishes a removed key from an expired one.
            return NatsLoginRefused(f"the NATS server at {where} refused {what} ({error.message})", hint=hint)
        if isinstance(error, errors.AimeshError):
            return errors.Unavailable(f"{error.message} ({where})", hint=error.hint, retry_after_seconds=1)
        if isinstance(error, ssl.SSLCertVerificationError):
            return errors.Unavailable(
                f"the NATS server at {where} has no certificate that is valid here: {error.verify_message or error.reason}",
                hint="set NATS_CA_FILE to its CA; the certificate must include the host in NATS_URL",
            )
        is_tls = any(server.tls for server in servers)
        # With TLS 1.3 the alert of a server that requires a certificate may be lost, because we write to the closed connection first.
        if isinstance(error, ssl.SSLError) or (is_tls and isinstance(error, ConnectionResetError | BrokenPipeError)):
            reason = getattr(error, "reason", None) or error
            return errors.Unavailable(
                f"TLS with the NATS server at {where} failed: {reason}",
                hint="if the server requires a client certificate, set NATS_CERT_FILE and NATS_KEY_FILE",
            )
        hint = "start it, or set NATS_URL"
        if all(server.is_web for server in servers):
            hint = "is the mesh up, and does a browser here open its pages? If a proxy is in between, set HTTPS_PROXY"
        return errors.Unavailable(f"no NATS server answers at {where}", hint=hint, retry_after_seconds=1)

    def _refused(self, servers: tuple[ServerAddress, ...]) -> tuple[str, str]:
        if self.jwt is not None:
            return "the credentials of NATS_CREDS_FILE", "ask the NATS server's operator for a new credentials file"
        if any(server.user for server in servers):
            return "the user and password of NATS_URL", "correct NATS_URL"
        if any(server.token for server in servers):
            return "the token of NATS_URL", "correct NATS_URL"
        return "this node's key", "an administrator sees the reason with `aicli admin nodes refusals`"


def _read_creds(path: Path) -> tuple[str, node_keys.NodeKey]:
    try:
        text = node_keys.read_private(path, setting="NATS_CREDS_FILE", most_bytes=_MAX_CREDS_BYTES).decode(errors="replace")
    except OSError as error:
        raise errors.BadSettings(
            f"NATS_CREDS_FILE: {path} cannot be read: {error.strerror}", hint="create one with `nsc generate creds`"
        ) from error
    jwt, seed = _JWT.search(text), _SEED.search(text)
    if jwt is None or seed is None:
        raise errors.BadSettings(
            f"NATS_CREDS_FILE: {path} does not contain a user's JWT and seed", hint="create one with `nsc generate creds`"
        )
    try:
        return jwt[1], node_keys.NodeKey(seed[1].encode())
    except errors.BadSettings as error:
        raise errors.BadSettings(
            f"NATS_CREDS_FILE: the seed in {path} is not a user's (SU…)", hint="create one with `nsc generate creds`"
        ) from error


def _trusting(files: NatsFiles) -> ssl.SSLContext | None:
    if files.ca is None and files.cert is None:
        return None
    try:
        context = ssl.create_default_context(cafile=files.ca)
    except OSError as error:
        raise errors.BadSettings(
            f"NATS_CA_FILE: {files.ca} cannot be used: {error.strerror}", hint="it must hold certificates in PEM form"
        ) from error
    if files.cert is not None:
        try:
            # An empty password, because OpenSSL would ask for one on the terminal.
            context.load_cert_chain(files.cert, files.key, password="")
        except OSError as error:
            raise errors.BadSettings(
                f"NATS_CERT_FILE: {files.cert} and {files.key} cannot be used: {error.strerror or 'they do not match'}",
                hint="they must contain a certificate and its unencrypted key in PEM form",
            ) from error
    return context
