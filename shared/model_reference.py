"""Plans which files to download for what a person typed: a URL, `hf:`, `ollama:` or `oci://`. Pure.

A reference names a file, or a document of a hub or registry that lists the files. What such a document says is checked before it gets into
a URL; no name of it becomes a path.
"""

import base64
import hashlib
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import msgspec

from shared import addresses, errors, model_folder
from shared.api.inference import ModelSources
from shared.models.manifest import PATH_ANNOTATION

#: Quantizations to choose from if the reference names none. The first that the repository has is chosen.
_PREFERRED = ("Q4_K_M", "Q8_0", "Q4_0")
_DIGEST = re.compile("(?:sha256[:=])?([0-9a-fA-F]{64})")
_HUB = re.compile(r"hf:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::([\w./-]+))?", re.ASCII)
#: OCI distribution specification, "Pulling manifests": the name and the tag or digest. No part of the name is `..`.
_OCI_PART = "[a-z0-9]+(?:(?:\\.|__?|-+)[a-z0-9]+)*"
_OCI = re.compile(rf"({_OCI_PART}(?:/{_OCI_PART})*)(?:@(sha256:[0-9a-f]{{64}})|:(\w[\w.-]{{0,127}}))?", re.ASCII)
_MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
_OLLAMA_MODEL, _OLLAMA_PROJECTOR = "application/vnd.ollama.image.model", "application/vnd.ollama.image.projector"
#: A file's path in a repository of the hub.
_PATH = re.compile(r"(?!.*(?:^|/)\.\.?(?:/|$))[^\x00-\x1f\\/]+(?:/[^\x00-\x1f\\/]+)*")
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_HINT = "write https://HOST/FILE.gguf, hf:OWNER/REPO:QUANT, ollama:NAME:TAG or oci://REGISTRY/NAME:TAG"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    url: str
    #: None if unknown before the download.
    sha256: str | None = None
    size: int | None = None
    #: The credentials among them are sent to the URL's own server only.
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: Allow HTTP without TLS to other machines.
    insecure: bool = False

    @property
    def is_local(self) -> bool:
        return self.url.startswith("file:")

    @property
    def key(self) -> str:
        """Identifies it among partial files."""
        return hashlib.sha256(self.url.encode()).hexdigest()[:32]

    @property
    def shown(self) -> str:
        """Return the URL without a query, which may hold a secret."""
        return self.url.partition("?")[0]


@dataclass(frozen=True, slots=True)
class PullPlan:
    #: The name to serve it under.
    name: str
    #: The parts of one model.
    files: tuple[RemoteFile, ...]
    #: Its file for images.
    projector: RemoteFile | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """A document that lists the files."""

    document: RemoteFile
    #: Gets the document and the headers with which it was read. Raises PeerError and NotFound.
    choose: Callable[[bytes, Mapping[str, str]], PullPlan]


Document = TypeVar("Document", bound=msgspec.Struct)
Listed = TypeVar("Listed")


class _LargeFile(msgspec.Struct):
    sha256: str
    size: int


class _HubFile(msgspec.Struct):
    path: str = msgspec.field(name="rfilename")
    lfs: _LargeFile | None = None


class _HubRepository(msgspec.Struct):
    sha: str
    siblings: list[_HubFile]


class _Layer(msgspec.Struct, rename="camel"):
    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None

    @property
    def title(self) -> str:
        notes = self.annotations or {}
        return notes.get("org.opencontainers.image.title") or notes.get(PATH_ANNOTATION, "")


class _Manifest(msgspec.Struct):
    layers: list[_Layer] = []


class _AccessToken(msgspec.Struct):
    token: str = ""
    access_token: str = ""


def plan(target: str, secret: str | None, sources: ModelSources, *, insecure: bool = False) -> PullPlan | Listing:
    """``secret`` is a token, or a user and password with a colon between them. Raises BadRequest."""
    if target.startswith("hf:"):
        return _plan_hub(target, secret or sources.hub_token, sources, insecure)
    if target.startswith("ollama:"):
        name = target.removeprefix("ollama:")
        where = f"registry.ollama.ai/{name if '/' in name else f'library/{name}'}"
        return _plan_registry(where, name, secret, sources, insecure)
    if target.startswith("oci://"):
        return _plan_registry(target.removeprefix("oci://"), target.rpartition("/")[2], secret, sources, insecure)
    url, _, fragment = target.partition("#")
    check_address(url, insecure=insecure)
    digest = _DIGEST.fullmatch(fragment)
    if fragment and digest is None:
        raise errors.BadRequest("after the # of the URL, only sha256= and 64 hexadecimal digits are allowed")
    name = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rpartition("/")[2]).removesuffix(".gguf")
    parts = urllib.parse.urlsplit(url)
    if mirror := sources.mirrors.get(parts.netloc):
        url = f"{mirror.rstrip('/')}{parts.path}{f'?{parts.query}' if parts.query else ''}"
        check_address(url, insecure=insecure)
    file = RemoteFile(url=url, sha256=None if digest is None else digest[1].lower(), headers=credentials(secret), insecure=insecure)
    return PullPlan(name, (file,))


def _plan_hub(target: str, token: str | None, sources: ModelSources, insecure: bool) -> Listing:
    if (typed := _HUB.fullmatch(target)) is None or ".." in target:
        raise errors.BadRequest(f"{target[:80]!r} is not a model of the hub", hint="write hf:OWNER/REPO or hf:OWNER/REPO:QUANT")
    repository, quant = typed[1], typed[2] or ""
    base = sources.hub_url.rstrip("/")
    document = RemoteFile(url=f"{base}/api/models/{repository}?blobs=true", headers=credentials(token), insecure=insecure)
    check_address(document.url, insecure=insecure)
    return Listing(document, partial(_choose_from_hub, replace(document, url=f"{base}/{repository}/resolve/"), quant))


def _choose_from_hub(base: RemoteFile, quant: str, body: bytes, headers: Mapping[str, str]) -> PullPlan:
    repository = _decode(body, _HubRepository, base)
    models: dict[str, list[_HubFile]] = {}
    projectors: dict[str, _HubFile] = {}
    for file in repository.siblings:
        stem, suffix = file.path[:-5], file.path[-5:].lower()
        if suffix == ".gguf" and _is_projector(stem) and not _is_projector(quant):
            projectors[stem] = file
        elif suffix == ".gguf" and _is_projector(stem) is _is_projector(quant):
            models.setdefault(_split(stem)[0], []).append(file)
    name = _choose_quant(models, quant, base)
    files = _in_order([(file.path[:-5], file) for file in models[name]], base)
    # In the model's folder, or the repository's. Of several, the one in the usual precision.
    beside = [stem for stem in projectors if stem.rpartition("/")[0] in ("", name.rpartition("/")[0])]
    usual = beside if len(beside) == 1 else [stem for stem in beside if _word("f16").search(stem.lower())]
    files += [projectors[stem] for stem in usual if len(usual) == 1]
    if not all(_PATH.fullmatch(file.path) for file in files) or not re.fullmatch("[0-9a-f]{40}", repository.sha):
        raise errors.PeerError(f"{base.url} lists a file with an unusable name")
    found = [
        replace(
            base,
            url=f"{base.url}{repository.sha}/{urllib.parse.quote(file.path)}",
            sha256=None if file.lfs is None else _sha256(file.lfs.sha256, base),
            size=None if file.lfs is None else file.lfs.size,
            headers=headers,
        )
        for file in files
    ]
    count = len(models[name])
    return PullPlan(name.rpartition("/")[2], tuple(found[:count]), next(iter(found[count:]), None))


def _is_projector(name: str) -> bool:
    return "mmproj" in name.lower()


def _word(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z0-9]){re.escape(text)}(?![a-z0-9_])")


def _choose_quant(models: Iterable[str], quant: str, base: RemoteFile) -> str:
    """Return the model whose file has this word in its name. Raises NotFound, which lists the models."""
    names, matching = sorted(models), list[str]()
    for wanted in [quant.removesuffix(".gguf")] if quant else _PREFERRED:
        word = _word(wanted.lower())
        matching = [name for name in names if name == wanted] or [name for name in names if word.search(name.lower())]
        if len(matching) == 1:
            return matching[0]
    if len(names) == 1 and not quant:
        return names[0]
    has = ", ".join(name[:80] for name in names[:20]) or "no GGUF file"
    wrong = f"{'several models' if matching else 'no model'} with {quant or ' or '.join(_PREFERRED)} in the name"
    raise errors.NotFound(f"{base.url.removesuffix('/resolve/')} has {wrong}; it has: {has}", hint="write hf:OWNER/REPO:QUANT or :FILE")


def _plan_registry(where: str, name: str, secret: str | None, sources: ModelSources, insecure: bool) -> Listing:
    host, _, rest = where.partition("/")
    if (typed := _OCI.fullmatch(rest)) is None or not re.fullmatch(r"[A-Za-z0-9.-]+(:\d+)?|\[[0-9a-f:]+\](:\d+)?", host):
        raise errors.BadRequest(f"{where[:80]!r} is not a model of a registry", hint=_HINT)
    scheme = "http" if insecure or urllib.parse.urlsplit(f"//{host}").hostname in addresses.LOOPBACK else "https"
    base = sources.mirrors.get(host, f"{scheme}://{'registry-1.docker.io' if host == 'docker.io' else host}").rstrip("/")
    headers = {"Accept": _MANIFESTS, **credentials(secret)}
    url = f"{base}/v2/{typed[1]}/"
    document = RemoteFile(url=f"{url}manifests/{typed[2] or typed[3] or 'latest'}", headers=headers, insecure=insecure)
    check_address(document.url, insecure=insecure)
    if typed[2]:
        document = replace(document, sha256=_sha256(typed[2], document))
        name = name.partition("@")[0]
    return Listing(document, partial(_choose_layers, replace(document, url=f"{url}blobs/"), name.removesuffix(":latest")))


def _choose_layers(base: RemoteFile, name: str, body: bytes, headers: Mapping[str, str]) -> PullPlan:
    if base.sha256 is not None and hashlib.sha256(body).hexdigest() != base.sha256:
        raise errors.PeerError(f"{base.url}: the manifest does not have the digest that you gave")
    listed = _decode(body, _Manifest, base).layers
    layers = [(layer.title.removesuffix(".gguf"), layer) for layer in listed if _is_gguf(layer) and not _sees_images(layer)]
    projectors = [layer for layer in listed if _is_gguf(layer) and _sees_images(layer)]
    if not layers:
        raise errors.NotFound(f"{base.url.removesuffix('blobs/')} has no GGUF file under this tag", hint="choose another tag")
    found = [*_in_order(layers, base), *(projectors if len(projectors) == 1 else ())]
    digests = ((_sha256(layer.digest, base), layer.size) for layer in found)
    files = [replace(base, url=f"{base.url}sha256:{digest}", sha256=digest, size=size, headers=headers) for digest, size in digests]
    return PullPlan(name, tuple(files[: len(layers)]), next(iter(files[len(layers) :]), None))


def _is_gguf(layer: _Layer) -> bool:
    what = layer.media_type.lower()
    return what in (_OLLAMA_MODEL, _OLLAMA_PROJECTOR) or "gguf" in what or layer.title.endswith(".gguf")


def _sees_images(layer: _Layer) -> bool:
    return layer.media_type == _OLLAMA_PROJECTOR or _is_projector(layer.media_type + layer.title)


def _split(stem: str) -> tuple[str, int, int]:
    part = model_folder.PART.fullmatch(stem)
    return (stem, 1, 1) if part is None else (part["name"], int(part["number"]), int(part["count"]))


def _in_order(named: list[tuple[str, Listed]], base: RemoteFile) -> list[Listed]:
    """Return the parts of one model in order. Raises PeerError if they are not exactly that."""
    parts = sorted(((_split(stem), file) for stem, file in named), key=lambda part: part[0][1])
    count = parts[0][0][2]
    if [split for split, _ in parts] != [(parts[0][0][0], number, count) for number in range(1, count + 1)]:
        raise errors.PeerError(
            f"{base.url}: the files are not one model and all its parts: {', '.join(stem[:80] for stem, _ in named[:20])}"
        )
    return [file for _, file in parts]


def plan_token(challenge: str, document: RemoteFile) -> RemoteFile | None:
    """Return where a registry wants us to get a token (distribution specification, "token authentication"); None if it wants none.

    Raises BadRequest for an address without TLS."""
    scheme, _, rest = challenge[:4096].partition(" ")
    facts = dict(_CHALLENGE.findall(rest))
    if scheme.lower() != "bearer" or not facts.get("realm"):
        return None
    check_address(facts["realm"], insecure=document.insecure)
    query = urllib.parse.urlencode({name: facts[name] for name in ("service", "scope") if name in facts})
    secret = {name: value for name, value in document.headers.items() if name == "Authorization"}
    return replace(document, url=f"{facts['realm']}?{query}", headers=secret, sha256=None)


def read_token(body: bytes, where: RemoteFile) -> dict[str, str]:
    """Return the header for the token in a token server's answer. Raises PeerError."""
    answer = _decode(body, _AccessToken, where)
    token = answer.token or answer.access_token
    if not re.fullmatch(r"[\x21-\x7e]{1,65536}", token):
        raise errors.PeerError(f"{where.shown} answered without a usable token")
    return {"Authorization": f"Bearer {token}"}


def credentials(secret: str | None) -> dict[str, str]:
    if secret is None:
        return {}
    value = f"Basic {base64.b64encode(secret.encode()).decode()}" if ":" in secret else f"Bearer {secret}"
    return {"Authorization": value}


def check_address(url: str, *, insecure: bool) -> None:
    """Raises BadRequest unless it is HTTPS, or HTTP to this machine or with ``insecure``."""
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port
    except ValueError:
        raise errors.BadRequest("this is not a URL", hint=_HINT) from None
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise errors.BadRequest(f"{url[:20]!r} is not the start of a URL", hint=_HINT)
    if parts.username is not None or parts.password is not None:
        raise errors.BadRequest("the URL contains a password, which other users of this machine can see", hint="use --token-file")
    if parts.scheme == "http" and parts.hostname not in addresses.LOOPBACK and not insecure:
        raise errors.BadRequest(f"{parts.hostname} would be reached without TLS", hint="use https://, or --insecure")


def _decode(body: bytes, kind: type[Document], where: RemoteFile) -> Document:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.PeerError(f"{where.shown} is not the list of files that was expected: {error}", hint="check the address") from error


def _sha256(text: str, where: RemoteFile) -> str:
    if (digest := _DIGEST.fullmatch(text)) is None:
        raise errors.PeerError(f"{where.url} lists a file without a usable SHA-256")
    return digest[1].lower()
