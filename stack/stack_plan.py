"""Plan what a stack runs, from its settings and secrets: the embedded servers and the five services.

Each service's environment has only what that service needs, and names secrets by file. A worker gets no database, no Redis and no other
node's key.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from shared import addresses, errors, model_folder
from shared.features import backends
from shared.identity import install_line
from shared.stores import object_credentials
from shared.types import Tier
from stack import features
from stack import stack_home as homes
from stack.features import MoreWorker, StackSite
from stack.ports import WantedPort
from stack.secret_files import DATABASE_ROLES, POSTGRES_ADMIN
from stack.servers import dht_programs, nats_server, postgres, valkey
from stack.servers.postgres import Postgres
from stack.servers.program import Program
from stack.servers.valkey import Valkey
from stack.settings import FILES_OF_FEATURES, PASSED, STORES_OF_FEATURES, StackSettings
from stack.stack_home import StackHome

if TYPE_CHECKING:
    from stack.network.certificate import TlsCertificate

#: The machine's variables that every program gets.
MACHINE = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SSL_CERT_FILE", "SSL_CERT_DIR")
#: Prefixes of variables for the engine, its GPU, and requests to other providers.
ENGINE_PREFIXES = ("CUDA_", "NVIDIA_", "HIP_", "ROCR_", "VK_", "GGML_", "LLAMA_", "OMP_", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")

#: service -> secret setting -> its file.
_SECRETS: dict[str, dict[str, str]] = {
    "auth": {
        "API_KEY_PEPPER": "key_pepper",
        "DATA_KEY": "data_key",
        "ADMIN_PASSWORD": "admin_password",
        "ADMIN_API_KEY": "admin_key",
    },
    "gateway": {"PROMPT_HASH_SECRET": "prompt_hash_secret", "WEB_HOP_SECRET": "web_hop_secret"},
    "inference": {"SERVICE_TOKEN": "service_token"},
    "metrics": {},
    "web": {"WEB_SECRET": "web_secret", "WEB_HOP_SECRET": "web_hop_secret"},
}
#: Replicas get their settings from this stack, so its own services follow no replica.
_AUTHORITATIVE = {"REPLICA_CHECK": "off"}
_NODE_KEYS = {"auth": "auth", "gateway": "gateway", "inference": "worker", "metrics": "metrics", "web": "web"}
_REDIS_USERS = ("auth", "gateway")
#: Programs stop from the highest stage down: first new requests, then running ones, then the servers below.
_STAGES = {"auth": 1, "inference": 1, "metrics": 1, "gateway": 2, "web": 3}
SERVICES = tuple(_STAGES)
#: Backend of a worker beside the first -> its node key.
_MORE_KEYS = {"echo": "echo", **{backend: f"inference-{backend}" for backend in backends()}}
#: Files that workers read when they start, beside those whose names end in _FILE.
_READ_AT_START = {"MODELS_YAML", "MODEL_TRUST", *FILES_OF_FEATURES}
#: Workers of other servers, which may be away while the stack starts.
REMOTE_WORKERS = tuple(f"inference-{backend}" for backend in backends())
WORKERS = ("inference", "inference-echo", *REMOTE_WORKERS)
#: Settings that only workers of these backends get: keys of providers stay there.
_OWN_MODELS = frozenset({"MODELS", "MODELS_YAML", "MODELS_DIR", "MODELS_PULL"})
_OF_BACKENDS = {
    **dict.fromkeys(_OWN_MODELS, ("llama", *(name for name, backend in backends().items() if backend.has_catalog))),
    "MODEL_TRUST": ("llama",),
    **{variable: (name,) for name, backend in backends().items() for variable in backend.variables},
}
_CODE = frozenset({".py", ".sql", ".lua", ".html", ".css", ".js"})


@dataclass(frozen=True, slots=True)
class StackPlan:
    """The supervisor's whole input."""

    programs: tuple[Program, ...]
    #: None if DATABASE_URL names an external one.
    postgres: Postgres | None
    valkey: Valkey | None
    #: Changes when a restart is needed: for settings, secrets, node keys or our own code.
    fingerprint: str


def make(home: StackHome, settings: StackSettings, recorded: Mapping[str, str], machine: Mapping[str, str]) -> StackPlan:
    """``recorded`` are the user's settings, secrets as NAME_FILE; ``machine`` is the environment that we run in."""
    visible = {name: machine[name] for name in MACHINE if name in machine}
    database = None if has_external_databases(settings) else postgres_of(home)
    cache = None if settings.redis_url else valkey_of(home)
    engine = {name: value for name, value in machine.items() if name.upper().startswith(ENGINE_PREFIXES)}
    services = []
    for service in SERVICES:
        environment = {**visible, **(engine if service == "inference" else {}), **service_environment(home, settings, recorded, service)}
        services.append(_service(service, service, environment, settings))
    for backend in more_workers(settings):
        environment = {**visible, **_worker_environment(home, settings, recorded, backend)}
        services.append(_service(f"inference-{backend}", "inference", environment, settings))
    more = features.programs(StackSite(home=home, settings=settings, recorded=recorded, machine=visible))
    programs = (*servers(home, settings, visible), *services, *more)
    return StackPlan(programs, database, cache, _fingerprint(programs, recorded))


def servers(home: StackHome, settings: StackSettings, visible: Mapping[str, str]) -> Iterator[Program]:
    """Return the servers that this stack runs itself."""
    if not has_external_databases(settings):
        options = {name: value for part in features.parts() for name, value in part.database_options(settings).items()}
        yield postgres.program(postgres_of(home), visible, options)
    if not settings.redis_url:
        yield valkey.program(valkey_of(home), visible)
    if not settings.nats_url:
        yield nats_server.program(home.nats, settings.nats_port, visible)
    yield from dht_programs.programs(settings, relay_seed(home), visible)


def has_external_databases(settings: StackSettings) -> bool:
    """Ignore the optional history of the metrics service: it is no reason to start a server."""
    return settings.database_url is not None or all((settings.auth_database_url, settings.gateway_database_url))


def postgres_of(home: StackHome) -> Postgres:
    return Postgres(home.postgres, home.sockets, POSTGRES_ADMIN, home.secrets / POSTGRES_ADMIN)


def valkey_of(home: StackHome) -> Valkey:
    return Valkey(home.valkey, home.sockets / "valkey.sock")


def relay_seed(home: StackHome) -> Path:
    return home.secrets / "relay_seed"


def database_url_file(home: StackHome, service: str) -> Path:
    """Return the URL of the embedded database for this service's role, password included."""
    return home.secrets / f"database_url_{service}"


def service_environment(home: StackHome, settings: StackSettings, recorded: Mapping[str, str], service: str) -> dict[str, str]:
    """Return the settings of one service, without the machine's variables."""
    names = (name for name, services in PASSED.items() if service in services)
    environment = node_environment(home, settings, recorded, _NODE_KEYS[service], names)
    environment |= {f"{name}_FILE": str(home.secrets / file) for name, file in _SECRETS[service].items()}
    if service == "auth":
        defaults = {
            "MESH_CA_KEY_FILE": str(home.secrets / "mesh_ca.nk"),
            "PUBLIC_URL": public_url("web", settings),
            **public_key_pin(settings, recorded),
            **_nats_for_tickets(settings, recorded),
            "AUDIT_ANCHOR_FILE": str(home.audit_anchors),
            # If other machines can reach the stack, registration is closed.
            "OPEN_REGISTRATION": "true" if settings.host in addresses.LOOPBACK else "false",
            # Coding agents send more requests than strangers may.
            "INVITED_TIER": Tier.ENTERPRISE.value,
            "OIDC_TIER": Tier.ENTERPRISE.value,
        }
        environment = {**defaults, **_nats_login_files(home, settings), **environment}
    if service in ("auth", "gateway"):
        environment = {"RECOVERY_LOG_DIR": str(home.recovery_log), **environment}
    environment |= _database_of(home, settings, recorded, service)
    site = StackSite(home=home, settings=settings, recorded=recorded)
    for part in features.parts():
        environment = {**part.defaults(site, service), **environment}
    if service in _REDIS_USERS:
        environment |= external_or(recorded, "REDIS_URL", {"REDIS_URL": valkey_of(home).url})
    if service == "inference":
        environment = {"MODEL_STORE": str(home.models), **_without_other_backends(environment, settings.backend)}
    if service == "gateway":
        # Not those that open other stores only.
        own = [recorded.get(store, "") for store in ("MODEL_ORIGIN", *(each.name for each in STORES_OF_FEATURES))]
        others = [name for name, address in object_credentials.STORES.items() if not any(store.startswith(address) for store in own)]
        environment = {name: value for name, value in environment.items() if name.removesuffix("_FILE") not in others}
        defaults = {"EXTERNAL_PROVIDERS": ",".join(providers_of(settings)), "TIER_ENTERPRISE": "concurrency=32"}
        defaults |= {"MODEL_ORIGIN": str(home.model_origin), "PUBLIC_URL": public_url("web", settings)}
        defaults |= {each.name: str(home.root / each.folder) for each in STORES_OF_FEATURES}
        environment = {**defaults, **_default_model(home, settings, recorded), **environment}
    if service == "web":
        pin = public_key_pin(settings, recorded)
        environment = {**_gateway_for_web(settings, recorded), **pin, **_nats_websocket(settings), **environment}
    return environment


def node_environment(
    home: StackHome, settings: StackSettings, recorded: Mapping[str, str], key: str, names: Iterable[str]
) -> dict[str, str]:
    """Return what a node of the mesh needs, and those of the settings ``names`` that the user has chosen."""
    environment = {"NODE_KEY_FILE": str(home.key(key)), "PYTHONUNBUFFERED": "1", **_AUTHORITATIVE}
    environment |= {each: recorded[each] for name in names for each in (name, f"{name}_FILE") if each in recorded}
    environment |= external_or(recorded, "NATS_URL", {"NATS_URL": nats_url(settings)})
    return environment | dht_programs.environment_of_services(settings, relay_seed(home))


def _default_model(home: StackHome, settings: StackSettings, recorded: Mapping[str, str]) -> dict[str, str]:
    """Beside another server, the packaged model stays the default while its worker is down, if it is the engine's only model."""
    has_others = settings.backend != "llama" or not _OWN_MODELS.isdisjoint(recorded) or _has_pulled(home)
    return {} if has_others or not more_workers(settings) else {"DEFAULT_MODEL": model_folder.PACKAGED_MODEL}


def find_missing_models(home: StackHome, settings: StackSettings, recorded: Mapping[str, str]) -> str:
    """Return why the first worker has no model; empty if it has one, or looks for one elsewhere than in MODELS_DIR."""
    folder = recorded.get("MODELS_DIR")
    has_others = _has_pulled(home) or not _OWN_MODELS.isdisjoint(recorded.keys() - {"MODELS_DIR"})
    if folder is None or settings.backend != "llama" or has_others:
        return ""
    try:
        has_models = bool(model_folder.find(Path(folder)).models)
    except OSError as error:
        return f"MODELS_DIR: cannot read {folder}: {error.strerror}; no model is served until you mend that"
    return "" if has_models else f"no .gguf file is in {folder} (MODELS_DIR); no model is served until you put one there"


def _has_pulled(home: StackHome) -> bool:
    return any((home.models / "names").glob("*.json"))


def _nats_login_files(home: StackHome, settings: StackSettings) -> dict[str, str]:
    if settings.nats_admission == "users":
        return {}
    keys = {f"NATS_{name.upper()}_KEY_FILE": str(home.secrets / f"nats_{name}.nk") for name in ("issuer", "callout", "sys")}
    return {**keys, "ENROLLMENT_LIST": str(home.enrollment)}


def _database_of(home: StackHome, settings: StackSettings, recorded: Mapping[str, str], service: str) -> dict[str, str]:
    is_ours = not has_external_databases(settings)
    if service not in DATABASE_ROLES:
        return {}
    own = f"{service.upper()}_DATABASE_URL_FILE"
    if own in recorded:
        return {"DATABASE_URL_FILE": recorded[own]}
    return external_or(recorded, "DATABASE_URL", {"DATABASE_URL_FILE": str(database_url_file(home, service))} if is_ours else {})


def _gateway_for_web(settings: StackSettings, recorded: Mapping[str, str]) -> dict[str, str]:
    """Raises BadSettings if web could not check the gateway's certificate."""
    found = _certificate(settings)
    if found is not None and found.host is None and "GATEWAY_URL" not in recorded:
        raise errors.BadSettings(
            f"TLS_CERT_FILE: {settings.tls_cert_file} has no name for {_listens_on(settings)}, where gateway and web listen",
            hint="add this address or a DNS name of this machine as subjectAltName, or set GATEWAY_URL to a name that it has",
        )
    trusted = {"GATEWAY_CA_FILE": str(settings.tls_cert_file)} if found is not None and found.self_signed else {}
    return {"GATEWAY_URL": public_url("gateway", settings), **trusted}


def external_or(recorded: Mapping[str, str], name: str, embedded: dict[str, str]) -> dict[str, str]:
    """Return the setting that the user has chosen, or else ``embedded``."""
    file = f"{name}_FILE"
    return {file: recorded[file]} if file in recorded else embedded


def more_workers(settings: StackSettings) -> tuple[str, ...]:
    """Return the backends of the workers beside the first."""
    return tuple(more_ports(settings))


def providers_of(settings: StackSettings) -> tuple[str, ...]:
    """Return EXTERNAL_PROVIDERS, or else the providers whose servers may be outside. The workers decide whether they are."""
    return settings.external_providers or tuple(sorted({name for part in features.parts() for name in part.providers(settings)}))


def _worker_environment(home: StackHome, settings: StackSettings, recorded: Mapping[str, str], backend: str) -> dict[str, str]:
    return service_environment(home, msgspec.structs.replace(settings, backend=backend), recorded, "inference") | {
        "NODE_KEY_FILE": str(home.key(_MORE_KEYS[backend])),
        "INFERENCE_BACKEND": backend,
        "INFERENCE_SERVICE_PORT": str(_ports(settings)[f"inference-{backend}"]),
    }


def _without_other_backends(environment: Mapping[str, str], backend: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if backend in _OF_BACKENDS.get(name.removesuffix("_FILE"), (backend,))}


def _service(name: str, package: str, environment: dict[str, str], settings: StackSettings) -> Program:
    return Program(
        name=name,
        command=(sys.executable, "-m", f"services.{package}"),
        environment=environment,
        stage=_STAGES[package],
        url=url_of(name, settings),
        # Services drain for up to 30 s, and then write the rows of their requests for up to 10 s.
        grace_seconds=45.0,
        hopeless_status=2,  # see shared/node/program.py
    )


def nats_url(settings: StackSettings) -> str:
    return settings.nats_url or f"nats://127.0.0.1:{settings.nats_port}"


def url_of(name: str, settings: StackSettings) -> str:
    public = name in ("gateway", "web")
    scheme = "https" if public and settings.tls_cert_file else "http"
    return f"{scheme}://{addresses.host_port(_listens_on(settings) if public else '127.0.0.1', _ports(settings)[name])}"


def _listens_on(settings: StackSettings) -> str:
    """Return an address at which gateway and web are reached on this machine."""
    everywhere = settings.host in ("0.0.0.0", "::", "localhost")  # noqa: S104 - compared, not bound
    return "127.0.0.1" if everywhere else settings.host


def public_url(name: str, settings: StackSettings) -> str:
    """Return the address for clients that check certificates: browsers, SDKs, web. Raises BadSettings."""
    found = _certificate(settings)
    host = None if found is None else found.host
    return url_of(name, settings) if host is None else f"https://{addresses.host_port(host, _ports(settings)[name])}"


def public_key_pin(settings: StackSettings, recorded: Mapping[str, str]) -> dict[str, str]:
    """Return the setting if no authority signed the certificate of the address that other machines use. Raises BadSettings."""
    found = _certificate(settings)
    # PUBLIC_URL is the address of a proxy with another certificate.
    is_ours = found is not None and found.self_signed and "PUBLIC_URL" not in recorded
    return {"PUBLIC_KEY_PIN": found.pin} if found is not None and is_ours else {}


def _nats_websocket(settings: StackSettings) -> dict[str, str]:
    is_ours = settings.nats_url is None and settings.nats_web_port is not None
    return {"NATS_WEBSOCKET": f"127.0.0.1:{settings.nats_web_port}"} if is_ours else {}


def _nats_for_tickets(settings: StackSettings, recorded: Mapping[str, str]) -> dict[str, str]:
    """Return the setting that lets other machines join by HTTPS, if they can open the pages. Raises BadSettings."""
    address = recorded.get("PUBLIC_URL", public_url("web", settings))
    is_reached = "PUBLIC_URL" in recorded or settings.host not in addresses.LOOPBACK
    # With a static list of users, NATS takes no newcomers.
    has_way = bool(_nats_websocket(settings) or "NATS_WEBSOCKET" in recorded) and settings.nats_admission == "callout"
    if not (address.startswith("https://") and is_reached and has_way):
        return {}
    pin = {**public_key_pin(settings, recorded), **recorded}.get("PUBLIC_KEY_PIN")
    return {"PUBLIC_NATS_URL": addresses.mesh_url(address, pin)}


def install_command(settings: StackSettings, recorded: Mapping[str, str]) -> str | None:
    """Return the line that installs aicli on another machine; None if the address has no TLS. Raises BadSettings."""
    address = recorded.get("PUBLIC_URL", public_url("web", settings))
    pin = {**public_key_pin(settings, recorded), **recorded}.get("PUBLIC_KEY_PIN")
    return install_line.make(address, pin=pin) if address.startswith("https://") else None


def _certificate(settings: StackSettings) -> "TlsCertificate | None":
    if settings.tls_cert_file is None:
        return None
    from stack.network import certificate  # imports cryptography

    return certificate.read(settings.tls_cert_file, _listens_on(settings))


def port_setting(program: str) -> str:
    return f"{program.removeprefix('inference-').upper()}_SERVICE_PORT"


def _ports(settings: StackSettings) -> dict[str, int]:
    found = {
        "web": settings.web_port,
        "auth": settings.auth_port,
        "gateway": settings.gateway_port,
        "inference": settings.inference_port,
        "metrics": settings.metrics_port,
    }
    more = more_ports(settings)
    return found | {f"inference-{backend}": port for backend, port in more.items() if port}


def more_ports(settings: StackSettings) -> dict[str, int | None]:
    """Return the port of each worker beside the first; None if it has none yet."""
    echo = MoreWorker(is_wanted=settings.echo, port=settings.echo_port)
    found = {"echo": echo, **features.workers(settings)}
    return {name: one.port for name, one in found.items() if one.is_wanted and (name == "echo" or name != settings.backend)}


def ports_wanted(settings: StackSettings) -> list[WantedPort]:
    """Return every port that the stack will listen on. Pure."""
    wanted = [WantedPort(port, name, port_setting(name)) for name, port in _ports(settings).items()]
    if settings.prometheus_port:
        wanted.append(WantedPort(settings.prometheus_port, "the scrape endpoint of metrics", "PROMETHEUS_PORT"))
    if not settings.nats_url:
        wanted.append(WantedPort(settings.nats_port, "nats", "NATS_PORT"))
    if not settings.nats_url and settings.nats_web_port is not None:
        wanted.append(WantedPort(settings.nats_web_port, "the WebSockets of nats", "NATS_WEB_PORT"))
    return wanted + dht_programs.ports_wanted(settings)


def _fingerprint(programs: tuple[Program, ...], recorded: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for program in programs:
        digest.update(repr((program.name, program.command)).encode())
        # A lost key or secret was created again, and running programs still use the old one.
        _add_files(digest, program.environment)
    for name, value in sorted(recorded.items()):
        digest.update(f"{name}={value}\n".encode())
    _add_files(digest, recorded)
    for path, changed in _sources():
        digest.update(f"{path} {changed}".encode())
    return digest.hexdigest()


def _add_files(digest: "hashlib._Hash", variables: Mapping[str, str]) -> None:
    for name, value in sorted(variables.items()):
        if (name.endswith("_FILE") or name in _READ_AT_START) and Path(value).is_file():
            digest.update(f"{name}\n".encode())
            digest.update(Path(value).read_bytes())


def _sources() -> Iterator[tuple[str, int]]:
    """Return our own files with their modification times, so that `git pull && make up` runs the new code."""
    for package in ("stack", "features", "services", "shared", "packages/pyhyperswarm/src"):
        for folder, folders, names in os.walk(homes.checkout() / package):
            # The sidecar's packages are thousands of files; its lock file identifies them.
            folders[:] = sorted(name for name in folders if name not in ("__pycache__", "node_modules"))
            for path in (Path(folder) / name for name in sorted(names)):
                if path.suffix in _CODE or path.name == "package-lock.json":
                    yield str(path), path.stat().st_mtime_ns
