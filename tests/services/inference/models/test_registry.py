"""Pulling from a real registry: Debian's docker-registry, open, with a password, and with a token server."""

import asyncio
import base64
import hashlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.inference.models import store_program
from services.inference.models.model_store import ModelStore
from shared import errors
from shared.api.inference import StoreRequest, StoreResult
from tests import capabilities
from tests.services.inference.models import fake_hub, ranged_server
from tests.stacks import until
from tests.testnet import free_port

BODY = ranged_server.model_bytes(3_000_000)
DIGEST = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
#: The password is `pass`.
HTPASSWD = "me:$2b$04$LDEnnwhKRAfxbjIFjbZyzufedFJEx8cHuewM5WwJdUA/2cWgNgKWy\n"


@pytest.fixture(autouse=True)
def _needs_registry() -> None:
    capabilities.require("registry")


@asynccontextmanager
async def registry(folder: Path, auth: str = "") -> AsyncIterator[str]:
    """Run a registry on the folder, and yield its host and port."""
    program, port = capabilities.find_program("docker-registry"), free_port()
    assert program is not None
    settings = folder / f"{port}.yml"
    settings.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n{auth}"
    )
    log = (folder / f"{port}.log").open("wb")
    with log:
        process = await asyncio.create_subprocess_exec(program, "serve", str(settings), stdout=log, stderr=log)
    try:

        async def is_up() -> bool:
            return await asyncio.to_thread(_status, f"http://127.0.0.1:{port}/v2/") in (200, 401)

        await until(is_up, seconds=60, ignoring=(OSError,))
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


def _status(url: str, body: bytes | None = None, method: str = "GET", kind: str = "application/octet-stream") -> int:
    request = urllib.request.Request(url, data=body, method=method, headers={"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def push(host: str) -> None:
    """Push the model as team/m:1.0."""
    config = b"{}"
    for body in (BODY, config):
        upload = urllib.request.Request(f"http://{host}/v2/team/m/blobs/uploads/", data=b"", method="POST")
        with urllib.request.urlopen(upload, timeout=30) as begun:
            place = begun.headers["Location"]
        assert _status(f"{place}&digest=sha256:{hashlib.sha256(body).hexdigest()}", body, "PUT") == 201
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": {"mediaType": "application/vnd.x+json", "digest": f"sha256:{hashlib.sha256(config).hexdigest()}", "size": len(config)},
        "layers": [
            {
                "mediaType": "application/octet-stream",
                "digest": DIGEST,
                "size": len(BODY),
                "annotations": {"org.opencontainers.image.title": "m-Q8_0.gguf"},
            }
        ],
    }
    assert _status(f"http://{host}/v2/team/m/manifests/1.0", json.dumps(manifest).encode(), "PUT", kind) == 201


async def pull(store: ModelStore, host: str, token_file: Path | None = None) -> StoreResult:
    token = None if token_file is None else str(token_file)
    request = StoreRequest(command="pull", folder=str(store._root), target=f"oci://{host}/team/m:1.0", token_file=token)
    return await asyncio.to_thread(store_program.carry_out, request)


def certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tokens")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    made = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    return made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())


async def test_model_is_pulled_from_an_open_registry(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    async with registry(tmp_path) as host:
        await asyncio.to_thread(push, host)
        (model,) = (await pull(store, host)).models
        assert (model.name, model.digest, model.size) == ("m:1.0", DIGEST.removeprefix("sha256:"), len(BODY))
        assert store.file(model).read_bytes() == BODY
        assert (await pull(store, host)).unchanged
        # A pull continues what an earlier pull left.
        store.remove("m:1.0")
        key = hashlib.sha256(f"http://{host}/v2/team/m/blobs/{DIGEST}".encode()).hexdigest()[:32]
        (store._root / "partial" / key).write_bytes(BODY[:1_000_000])
        (store._root / "partial" / f"{key}.json").write_text(json.dumps({"etag": f'"{DIGEST}"', "size": len(BODY)}))
        assert (await pull(store, host)).models[0].digest == model.digest


async def test_registry_with_a_password(tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    (tmp_path / "token").write_text("me:pass\n")
    async with registry(tmp_path) as host:
        await asyncio.to_thread(push, host)
    async with registry(tmp_path, f"auth: {{htpasswd: {{realm: here, path: {tmp_path}/htpasswd}}}}\n") as host:
        store = ModelStore(tmp_path / "models")
        with pytest.raises(errors.NotAllowed, match="refused access"):
            await pull(store, host)
        assert (await pull(store, host, tmp_path / "token")).models[0].size == len(BODY)


async def test_registry_with_a_token_server(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    trusted = certificate(key)
    (tmp_path / "trusted.pem").write_bytes(trusted.public_bytes(serialization.Encoding.PEM))
    chain = [base64.b64encode(trusted.public_bytes(serialization.Encoding.DER)).decode()]
    now = int(time.time())
    claims = {
        "iss": "tokens", "sub": "", "aud": "registry", "exp": now + 300, "nbf": now - 300, "iat": now,
        "access": [{"type": "repository", "name": "team/m", "actions": ["pull"]}],
    }  # fmt: skip
    async with registry(tmp_path) as host:
        await asyncio.to_thread(push, host)
    with fake_hub.serving() as tokens:
        granted = jwt.encode(claims, key, "ES256", headers={"x5c": chain})
        tokens.bodies["/token"] = json.dumps({"access_token": granted}).encode()
        facts = f"{{realm: '{tokens.url}/token', service: registry, issuer: tokens, rootcertbundle: {tmp_path}/trusted.pem}}"
        async with registry(tmp_path, f"auth: {{token: {facts}}}\n") as host:
            assert (await pull(ModelStore(tmp_path / "models"), host)).models[0].size == len(BODY)
    assert tokens.paths() == ["/token?service=registry&scope=repository%3Ateam%2Fm%3Apull"]
