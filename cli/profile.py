"""Find, read and write profiles: TOML files that name the mesh and the node, or a URL, and the API key to use.

The first of these that is set applies: AICLI_PROFILE, AIMESH_URL, AIMESH_HOME, the stack of the checkout that the command runs in, the
user's default profile. AICLI_API_KEY replaces the profile's key. If an explicitly named place has no profile, that is an error: the command
would otherwise use another mesh than intended.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from cli import installation, user_folders
from shared import addresses, errors
from shared.identity import private_file
from shared.types import Credential, MeshName

FILE = "profile.toml"
DEFAULT = "default"
#: In the folder of the user's profiles: the name of the default profile, if it has another.
_CURRENT = "current"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: A profile is a few short lines.
_MAX_BYTES = 64 * 1024
#: Windows shows neither owner nor mode of a file; a user's folder is private there.
_HAS_OWNERS = hasattr(os, "geteuid")
_HOME = MeshName("home")
_NATS_URL = "nats://127.0.0.1:4222"
#: Used as nats_url for Hyperswarm alone.
_NO_NATS = "none"
_STRINGS = (
    *("mesh", "nats_url", "nats_ca_file", "nats_cert_file", "nats_key_file", "nats_creds_file", "node_key_file", "mesh_file"),
    *("url", "ca_file", "insecure", "api_key", "username", "web_url"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    #: None only with a URL.
    node_key_file: Path | None = None
    mesh: MeshName = _HOME
    #: None for Hyperswarm alone.
    nats_url: str | None = _NATS_URL
    #: The membership that `aicli mesh connect` saved; None for NATS alone.
    mesh_file: Path | None = None
    #: The CA of the NATS server's certificate; None for the public authorities.
    nats_ca_file: Path | None = None
    #: The client certificate that the NATS server may require, and its key; or a credentials file instead of the node key.
    nats_cert_file: Path | None = None
    nats_key_file: Path | None = None
    nats_creds_file: Path | None = None
    #: The gateway or web, for calls over HTTPS instead of the mesh.
    url: str | None = None
    #: The CA of its certificate; None for the public authorities.
    ca_file: Path | None = None
    #: Allow http:// to another machine.
    insecure: bool = False
    #: None before the first login.
    api_key: Credential | None = None
    #: The account of the key, for display only.
    username: str | None = None
    #: The address for `aicli dashboard`.
    web_url: str = "http://127.0.0.1:3000"

    @property
    def node_key(self) -> Path:
        """The file of the node's key. Raises BadSettings for a profile with a URL, which has no node."""
        if self.node_key_file is None:
            raise errors.BadSettings(
                f"this needs the mesh itself, and the profile only has {self.url}", hint="use a profile of `aicli mesh connect TICKET`"
            )
        return self.node_key_file


@dataclass(frozen=True, slots=True)
class ProfilePlace:
    """The place of a profile, and the reason for choosing it."""

    #: None if the environment has it all: AIMESH_URL and a key.
    path: Path | None
    why: str


def folder_of_user(environment: Mapping[str, str]) -> Path:
    """Return the folder of the user's profiles: $XDG_CONFIG_HOME/aimesh/profiles."""
    return user_folders.config(environment) / "profiles"


def place_of(name: str, environment: Mapping[str, str]) -> Path:
    """Return the file of the user's profile of this name. Raises BadSettings for an invalid name."""
    if not _NAME.fullmatch(name) or name.endswith(".toml"):
        raise errors.BadSettings(f"{name!r} is not a valid profile name", hint="use letters, digits, . _ and -")
    return folder_of_user(environment) / f"{name}.toml"


def find(environment: Mapping[str, str], folder: Path) -> ProfilePlace:
    """Return the profile that a command in ``folder`` uses. Raises BadSettings if there is none."""
    found = look(environment, folder)
    if found is None:
        raise none_found()
    return found


def none_found() -> errors.BadSettings:
    installed = installation.find(Path(sys.prefix))
    hint = (
        "run `make up` in the checkout; from other folders, set AIMESH_HOME to its .aimesh, or AICLI_PROFILE to a profile file; "
        "on another machine, aicli login https://HOST or aicli mesh connect TICKET"
    )
    if installed is not None and installed.mesh:
        hint = f"sign in at {installed.mesh}: aicli login"
    return errors.BadSettings("no profile found, so aicli doesn't know which mesh to use", hint=hint)


def look(environment: Mapping[str, str], folder: Path) -> ProfilePlace | None:
    """Return the profile that a command in ``folder`` uses, if there is one. Raises BadSettings if a place is named and has none."""
    if chosen := environment.get("AICLI_PROFILE"):
        return _named(chosen, environment, folder)
    if environment.get("AIMESH_URL", "").strip():
        return ProfilePlace(None, "AIMESH_URL")
    if home := environment.get("AIMESH_HOME"):
        path = (folder / home).expanduser() / FILE
        if not path.is_file():
            raise errors.BadSettings(
                f"AIMESH_HOME is {home}, which contains no {FILE}", hint="run make up to create it, or unset AIMESH_HOME"
            )
        return ProfilePlace(path, "AIMESH_HOME")
    for parent in _checkout(folder):
        path = parent / ".aimesh" / FILE
        if path.is_file():
            _refuse_foreign(path)
            return ProfilePlace(path, f"the stack in {parent}")
    default = folder_of_user(environment) / f"{default_name(environment)}.toml"
    return ProfilePlace(default, "the default profile") if default.is_file() else None


def chosen_name(environment: Mapping[str, str]) -> str | None:
    """Return AICLI_PROFILE if it is a name, not a path. The profile need not exist."""
    chosen = environment.get("AICLI_PROFILE", "")
    return chosen if _NAME.fullmatch(chosen) and not chosen.endswith(".toml") else None


def default_name(environment: Mapping[str, str]) -> str:
    """Return the name of the user's default profile, which need not exist."""
    try:
        chosen = (folder_of_user(environment) / _CURRENT).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return DEFAULT
    return chosen if _NAME.fullmatch(chosen) else DEFAULT


def set_default(name: str, environment: Mapping[str, str]) -> None:
    """Raises OSError."""
    private_file.replace(folder_of_user(environment) / _CURRENT, name.encode())


def names(environment: Mapping[str, str]) -> list[str]:
    """Return the names of the user's profiles."""
    return sorted(path.stem for path in folder_of_user(environment).glob("*.toml"))


def _named(chosen: str, environment: Mapping[str, str], folder: Path) -> ProfilePlace:
    if "/" in chosen or chosen.endswith(".toml"):
        path = folder / Path(chosen).expanduser()
    elif _NAME.fullmatch(chosen):
        path = folder_of_user(environment) / f"{chosen}.toml"
    else:
        raise errors.BadSettings(f"{chosen!r} is neither a profile name nor a path", hint="use letters, digits, . _ and -")
    if not path.is_file():
        raise errors.BadSettings(f"there is no profile {chosen!r} ({path})", hint="unset AICLI_PROFILE, or set it to an existing profile")
    return ProfilePlace(path, f"AICLI_PROFILE={chosen}")


def _checkout(folder: Path) -> Iterator[Path]:
    """Return ``folder`` and its parents up to the root of the checkout, or only ``folder`` outside a checkout: anyone can put a profile
    into a parent such as /tmp.
    """
    parents = [folder, *folder.parents]
    for marker in (".git", "pyproject.toml"):
        for depth, parent in enumerate(parents):
            if (parent / marker).exists():
                return iter(parents[: depth + 1])
    return iter([folder])


def _refuse_foreign(path: Path) -> None:
    """Refuse a profile of another user, as git does, because a profile decides where prompts and keys are sent."""
    if _HAS_OWNERS and path.stat().st_uid not in (os.geteuid(), 0):
        raise errors.BadSettings(f"{path} belongs to another user", hint=f"to use it anyway, set AICLI_PROFILE={path}")


def load(environment: Mapping[str, str], folder: Path) -> Profile:
    """Load the profile to use, with the key of AICLI_API_KEY if set. Raises BadSettings."""
    place = find(environment, folder)
    ca_file = Path(environment["AIMESH_CA_FILE"]) if environment.get("AIMESH_CA_FILE") else None
    if place.path is None:
        key = environment.get("AICLI_API_KEY", "").strip() or environment.get("AIMESH_API_KEY", "").strip()
        return at_url(environment["AIMESH_URL"].strip(), ca_file=ca_file, api_key=Credential(key) if key else None)
    found = read(place.path)
    if found.url is not None and ca_file is not None:
        found = replace(found, ca_file=ca_file)
    _refuse_plain_nats(found, place, environment)
    if key := environment.get("AICLI_API_KEY", "").strip():
        # The account of that key is unknown.
        return replace(found, api_key=Credential(key), username=None)
    return found


def at_url(url: str, *, ca_file: Path | None = None, insecure: bool = False, api_key: Credential | None = None) -> Profile:
    """Return a profile for calls over HTTPS. Raises BadSettings for another URL, or if it would send the key unencrypted."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise errors.BadSettings("the URL is not an address such as https://ai.example.org")
    if parts.scheme == "http" and parts.hostname not in addresses.LOOPBACK and not insecure:
        raise errors.BadSettings(
            f"http:// would send your key to {parts.hostname} unencrypted", hint="use https://, or --insecure with `aicli login`"
        )
    url = url.rstrip("/")
    return Profile(url=url, nats_url=None, ca_file=ca_file, insecure=insecure, api_key=api_key, web_url=url)


def _refuse_plain_nats(found: Profile, place: ProfilePlace, environment: Mapping[str, str]) -> None:
    """Refuse unencrypted connections to other machines, as services do."""
    if found.nats_url is None:
        return
    if environment.get("ALLOW_PLAIN_NATS", "").lower() in ("1", "true", "yes", "on"):
        return
    try:
        plain = addresses.plain_hosts(found.nats_url)
    except ValueError as error:
        raise errors.BadSettings(f"{place.path}: nats_url is {error}") from error
    if plain:
        raise errors.BadSettings(
            f"{place.path}: nats_url: {plain[0]} is not this machine, and nats:// is not encrypted",
            hint="use tls:// (or ALLOW_PLAIN_NATS=true on a private network)",
        )


def read(path: Path) -> Profile:
    """Read a profile. Raises BadSettings if it is invalid or others can read it. Ignores unknown fields, which newer versions may write."""
    known = _read_strings(path)

    def beside(name: str) -> Path | None:
        return path.parent / Path(known[name]).expanduser() if name in known else None

    if "url" in known:
        try:
            found = at_url(known["url"], ca_file=beside("ca_file"), insecure=known.get("insecure") == "true")
        except errors.BadSettings as error:
            raise errors.BadSettings(f"{path}: {error.message}", hint=error.hint) from error
    elif "node_key_file" in known:
        mesh_file = beside("mesh_file")
        # A profile made with a ticket needs no NATS; others do.
        nats_url = known.get("nats_url", _NATS_URL if mesh_file is None else _NO_NATS)
        if nats_url == _NO_NATS and mesh_file is None:
            raise errors.BadSettings(
                f"{path}: without NATS it needs a mesh_file", hint="create a profile that has one: aicli mesh connect TICKET"
            )
        found = Profile(
            node_key_file=beside("node_key_file"),
            mesh=MeshName(known.get("mesh", _HOME)),
            nats_url=None if nats_url == _NO_NATS else nats_url,
            mesh_file=mesh_file,
            nats_ca_file=beside("nats_ca_file"),
            nats_cert_file=beside("nats_cert_file"),
            nats_key_file=beside("nats_key_file"),
            nats_creds_file=beside("nats_creds_file"),
        )
    else:
        raise errors.BadSettings(f"{path} has no node_key_file", hint="create a node key for this machine: aicli stack init")
    api_key = Credential(known["api_key"]) if "api_key" in known else None
    return replace(found, api_key=api_key, username=known.get("username"), web_url=known.get("web_url", found.web_url))


def _read_strings(path: Path) -> dict[str, str]:
    """Return the fields that are not empty."""
    import tomllib

    try:
        if _HAS_OWNERS and path.stat().st_mode & 0o077:
            raise errors.BadSettings(f"{path} is readable by other users, and it contains a key", hint=f"chmod 600 {path}")
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise errors.BadSettings(f"{path} is not a profile: it is longer than {_MAX_BYTES // 1024} KiB")
        fields = tomllib.loads(text.decode())
    except OSError as error:
        raise errors.BadSettings(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise errors.BadSettings(f"{path} is not a profile: {error}", hint="delete it and run `make up` again") from error
    for name in _STRINGS:
        if not isinstance(fields.get(name, ""), str):
            raise errors.BadSettings(f"{path}: {name} must be a string in quotes")
    return {name: fields[name] for name in _STRINGS if fields.get(name)}


def write(path: Path, profile: Profile) -> None:
    """Replace the file atomically, readable only by its owner. Raises BadSettings."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        private_file.replace(path, render(profile).encode(), synced=True)
    except OSError as error:
        raise errors.BadSettings(f"cannot write {path}: {error.strerror}") from error


def render(profile: Profile) -> str:
    """Return a profile as TOML text."""
    is_mesh = profile.url is None
    fields = {
        "url": profile.url,
        "ca_file": profile.ca_file,
        "insecure": "true" if profile.insecure else None,
        "mesh": profile.mesh if is_mesh else None,
        "nats_url": profile.nats_url or (_NO_NATS if is_mesh else None),
        "mesh_file": profile.mesh_file,
        "nats_ca_file": profile.nats_ca_file,
        "nats_cert_file": profile.nats_cert_file,
        "nats_key_file": profile.nats_key_file,
        "nats_creds_file": profile.nats_creds_file,
        "web_url": profile.web_url,
        "node_key_file": profile.node_key_file,
        "username": profile.username,
        "api_key": profile.api_key,
    }
    return "".join(f"{name} = {_quoted(str(value))}\n" for name, value in fields.items() if value is not None)


def _quoted(value: str) -> str:
    """Return a TOML basic string (toml.io v1.0.0, "String"), with quotes, backslashes and control characters escaped."""
    return '"' + "".join(f"\\u{ord(char):04X}" if char in '"\\\x7f' or char < " " else char for char in value) + '"'
