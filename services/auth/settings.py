"""auth's settings, read from the environment."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, field

from services.auth import passwords
from shared import addresses, node
from shared.config import Port, Variable
from shared.identity import install_line, node_keys
from shared.node.settings import Migrate
from shared.types import PlanName, Tier, UserRole


class AuthSettings(node.NodeSettings, frozen=True, kw_only=True):
    SERVICE = "auth"

    port: Annotated[Port, Variable("AUTH_SERVICE_PORT", "the port of auth's health and metrics")] = 3001
    database_url: Annotated[str, Variable("DATABASE_URL", "PostgreSQL", secret=True, override="AUTH_DATABASE_URL")]
    migrate: Migrate = "on"
    database_pool: Annotated[int, Meta(ge=1, le=100), Variable("DATABASE_POOL", "maximum connections to PostgreSQL per replica")] = 10
    redis_url: Annotated[str, Variable("REDIS_URL", "Redis or Valkey, Sentinel or cluster, for sessions and failed logins", secret=True)]
    api_key_pepper: Annotated[
        str,
        Meta(min_length=32),
        Variable("API_KEY_PEPPER", "key of the HMAC under which API keys are stored, at least 32 characters", secret=True),
    ]
    session_timeout_seconds: Annotated[int, Meta(ge=1), Variable("SESSION_TIMEOUT", "seconds after which an unused session ends")] = 3600
    session_longest_seconds: Annotated[int, Variable("SESSION_LONGEST", "seconds after which every session ends, used or not")] = 43_200
    session_program_days: Annotated[
        int, Meta(ge=1, le=365), Variable("SESSION_PROGRAM_DAYS", "days after which a program's unused login ends")
    ] = 30
    password_min_length: Annotated[
        int,
        Meta(ge=passwords.MIN_MIN_LENGTH, le=passwords.MAX_LENGTH),
        Variable("PASSWORD_MIN_LENGTH", "shortest password; NIST SP 800-63B-4 asks for 15 where there is no second factor"),
    ] = 8
    open_registration: Annotated[
        bool,
        Variable(
            "OPEN_REGISTRATION",
            "true: anyone may register; false: administrators add users, and invited users register. `make up` sets true "
            "where BIND_HOST is loopback",
            on_all_replicas=True,
        ),
    ] = False
    invited_tier: Annotated[
        PlanName, Variable("INVITED_TIER", "tier of users that an administrator invites to the mesh or adds; `make up` sets enterprise")
    ] = Tier.FREE
    organisations_per_user: Annotated[
        int,
        Meta(ge=0, le=1_000),
        Variable("ORGANISATIONS_PER_USER", "organizations that one user may create; administrators have no limit"),
    ] = 2
    registrations_per_address: Annotated[
        int, Meta(ge=1), Variable("REGISTRATIONS_PER_ADDRESS", "accounts that one address may request per hour; loopback is not counted")
    ] = 20
    admin_password: Annotated[
        str | None, Variable("ADMIN_PASSWORD", "password of `admin`, which is created if there is no administrator yet", secret=True)
    ] = None
    admin_api_key: Annotated[
        str | None, Variable("ADMIN_API_KEY", "the first API key of that `admin`, for scripts; `aip_adm_…`", secret=True)
    ] = None
    data_key: Annotated[
        str,
        Meta(min_length=43, max_length=64),
        Variable(
            "DATA_KEY",
            "encrypts stored secrets, like seeds of second factors: 32 random bytes in base64; prefer DATA_KEY_FILE",
            secret=True,
        ),
    ]
    data_key_old: Annotated[
        Annotated[str, Meta(min_length=43, max_length=64)] | None,
        Variable("DATA_KEY_OLD", "the previous DATA_KEY, until everything is re-encrypted; prefer DATA_KEY_OLD_FILE", secret=True),
    ] = None
    admin_mfa: Annotated[bool, Variable("ADMIN_MFA", "administrators need a second factor to log in; use false only for tests")] = True
    signing_key_days: Annotated[
        int, Meta(ge=1, le=3650), Variable("SIGNING_KEY_DAYS", "days after which the key that signs access tokens is rotated")
    ] = 90

    public_url: Annotated[str, Variable("PUBLIC_URL", "public address of the web pages, for links in emails", on_all_replicas=True)] = ""
    public_key_pin: install_line.PublicKeyPin = None
    smtp_url: Annotated[
        str | None,
        Variable(
            "SMTP_URL",
            "the mail server: smtp://user:password@host:587 (STARTTLS) or smtps://…:465; without it, emails are printed to the log",
            secret=True,
            on_all_replicas=True,
        ),
    ] = None
    mail_from: Annotated[str, Variable("MAIL_FROM", "the sender of emails")] = "aimesh <noreply@localhost>"
    money: Annotated[
        Literal["on", "off"],
        Variable(
            "MONEY",
            "the same value as for the gateway; on, with SMTP_URL: free tokens are for verified email addresses",
            on_all_replicas=True,
        ),
    ] = "off"

    oidc_issuer: Annotated[
        str | None, Variable("OIDC_ISSUER", "an OpenID Connect provider whose users may log in", on_all_replicas=True)
    ] = None
    oidc_client_id: Annotated[str, Variable("OIDC_CLIENT_ID", "client ID of this mesh at the provider")] = ""
    oidc_client_secret: Annotated[str | None, Variable("OIDC_CLIENT_SECRET", "client secret of this mesh at the provider", secret=True)] = (
        None
    )
    oidc_name: Annotated[str, Variable("OIDC_NAME", "the provider's name on the login button")] = "single sign-on"
    oidc_scopes: Annotated[tuple[str, ...], Variable("OIDC_SCOPES", "scopes to request, separated by commas")] = (
        "openid",
        "email",
        "profile",
    )
    oidc_groups_claim: Annotated[str, Variable("OIDC_GROUPS_CLAIM", "the claim that lists a user's groups")] = "groups"
    oidc_roles: Annotated[
        dict[str, UserRole], Variable("OIDC_ROLES", 'the role of each group, as JSON: {"ml-team": "developer"}; others are users')
    ] = field(default_factory=dict)
    oidc_tier: Annotated[
        PlanName, Variable("OIDC_TIER", "tier of accounts that log in with the provider or IAP, once; `make up` sets enterprise")
    ] = Tier.FREE
    oidc_ca_file: Annotated[Path | None, Variable("OIDC_CA_FILE", "the CA of the provider's certificate, if it is a private one")] = None

    iap_audience: Annotated[
        str | None, Variable("IAP_AUDIENCE", "take users from Google's Identity-Aware Proxy: the audience of its header, /projects/…")
    ] = None
    iap_keys_url: Annotated[str, Variable("IAP_KEYS_URL", "where IAP's public keys are; OIDC_CA_FILE applies to it, too")] = (
        "https://www.gstatic.com/iap/verify/public_key-jwk"
    )

    recovery_log_dir: Annotated[
        Path | None,
        Variable(
            "RECOVERY_LOG_DIR",
            "folder for the signed recovery log; without it, a restored database accepts revoked keys, nodes and tickets again",
        ),
    ] = None
    audit_anchor_file: Annotated[
        Path | None, Variable("AUDIT_ANCHOR_FILE", "file for signed heads of the audit log; best on another machine's disk")
    ] = None
    audit_days: Annotated[
        int, Meta(ge=0, le=36500), Variable("AUDIT_DAYS", "days to keep addresses and details in the audit log; the chain stays")
    ] = 365
    invitation_days: Annotated[int, Meta(ge=1, le=3650), Variable("INVITATION_DAYS", "days to keep invitations after they end")] = 90
    ended_key_days: Annotated[int, Meta(ge=1, le=36500), Variable("ENDED_KEY_DAYS", "days to keep names of ended keys; their ids stay")] = (
        365
    )
    erasure_days: Annotated[
        int, Meta(ge=0, le=365), Variable("ERASURE_DAYS", "days between a request to delete an account and the deletion")
    ] = 30

    mesh_ca_key_file: Annotated[
        Path | None,
        Variable(
            "MESH_CA_KEY_FILE",
            "file with the key of the mesh CA, an nkey seed; without it, nodes join over NATS only",
            on_all_replicas=True,
        ),
    ] = None
    mesh_ca_next_key_file: Annotated[
        Path | None, Variable("MESH_CA_NEXT_KEY_FILE", "a second CA key that nodes trust, while you rotate the key")
    ] = None
    nats_issuer_key_file: Annotated[
        Path | None,
        Variable(
            "NATS_ISSUER_KEY_FILE",
            "file with the account key that signs NATS logins; the NATS servers name it as issuer",
            on_all_replicas=True,
        ),
    ] = None
    nats_callout_key_file: Annotated[
        Path | None,
        Variable(
            "NATS_CALLOUT_KEY_FILE", "file with the key with which auth answers the NATS servers' auth callouts", on_all_replicas=True
        ),
    ] = None
    nats_sys_key_file: Annotated[
        Path | None,
        Variable(
            "NATS_SYS_KEY_FILE",
            "file with the key of the NATS system account, with which auth cuts off revoked nodes",
            on_all_replicas=True,
        ),
    ] = None
    enrollment_list: Annotated[
        Path | None,
        Variable("ENROLLMENT_LIST", "enrollment.json: the nodes that may connect before they have a certificate", on_all_replicas=True),
    ] = None
    public_nats_url: Annotated[
        str | None,
        Variable(
            "PUBLIC_NATS_URL",
            "URLs of the NATS servers for tickets, without passwords, also wss://…/mesh: nodes then join over NATS, and try Hyperswarm "
            "beside it; default: NATS_URL if DHT_BOOTSTRAP is empty",
            on_all_replicas=True,
        ),
    ] = None
    ticket_bootstrap: Annotated[
        tuple[str, ...],
        Variable(
            "TICKET_BOOTSTRAP", "addresses of the DHT nodes for remote machines, host:port separated by commas; default: DHT_BOOTSTRAP"
        ),
    ] = ()

    @property
    def makes_own_key(self) -> bool:
        return self.mesh_ca_key_file is not None

    @property
    def verifies_addresses(self) -> bool:
        """Return whether users must verify their address to get the tokens of a plan without a fee."""
        return self.money == "on" and self.smtp_url is not None

    def page(self, path: str) -> str:
        """Return the public address of a page; empty without PUBLIC_URL."""
        return self.public_url.rstrip("/") + path if self.public_url else ""

    def mistakes(self) -> Iterator[str]:
        yield from super().mistakes()
        if self.mesh_ca_next_key_file is not None and self.mesh_ca_key_file is None:
            yield "MESH_CA_NEXT_KEY_FILE needs MESH_CA_KEY_FILE"
        logins = self.nats_issuer_key_file, self.nats_callout_key_file, self.nats_sys_key_file
        if None in logins and any(logins):
            yield "NATS_ISSUER_KEY_FILE, NATS_CALLOUT_KEY_FILE and NATS_SYS_KEY_FILE go together"
        yield from self._mistakes_of_public_nats_url()
        for address in self.ticket_bootstrap:
            if mistake := addresses.mistake_of_node(address):
                yield f"TICKET_BOOTSTRAP: {mistake}"
        for key in self.dht_relays:
            try:
                node_keys.raw_of_hex(key)
            except ValueError:
                yield "DHT_RELAYS: a relay's key is 64 hexadecimal digits"
        if self.session_longest_seconds < self.session_timeout_seconds:
            yield "SESSION_LONGEST must not be shorter than SESSION_TIMEOUT"

    def _mistakes_of_public_nats_url(self) -> Iterator[str]:
        if self.public_nats_url is None:
            return
        try:
            addresses.plain_hosts(self.public_nats_url)
        except ValueError as error:
            yield f"PUBLIC_NATS_URL: {error}"
        else:
            if addresses.has_credentials(self.public_nats_url):
                yield "PUBLIC_NATS_URL: every ticket would contain its password or token"
