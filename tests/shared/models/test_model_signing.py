"""OpenSSF's model-signing as its users install it: it accepts our signatures, we accept its, and both refuse the same ones."""

import base64
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cli.ask import publisher_keys
from shared import errors
from shared.models import trust_bundle
from tests import tiers
from tests.shared.models.publishers import FILES, Publisher, manifest_of, named, version_of

INSTALL_SECONDS, VERIFY_SECONDS = 300, 300
#: Prints 1 for each signature of a folder that is right for the model, else 0.
VERIFY = """
import contextlib, pathlib, sys
from model_signing import verifying
key, model, signatures = sys.argv[1:]
for signature in sorted(pathlib.Path(signatures).iterdir()):
    try:
        # It prints warnings.
        with contextlib.redirect_stdout(sys.stderr):
            verifying.Config().use_elliptic_key_verifier(public_key=key).verify(pathlib.Path(model), signature)
        print(1)
    except Exception:
        print(0)
"""
pytestmark = [pytest.mark.nightly("clients"), pytest.mark.timeout(INSTALL_SECONDS + VERIFY_SECONDS)]


class Stranger:
    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "venv/bin"
        lock = tiers.ROOT / "requirements/model-signing.lock"
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True, timeout=INSTALL_SECONDS)
        self.run("pip", "install", "--quiet", "--require-hashes", "-r", str(lock))

    def run(self, program: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [str(self.bin / program), *words]
        return subprocess.run(command, check=check, capture_output=True, text=True, timeout=max(INSTALL_SECONDS, VERIFY_SECONDS))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    return Stranger(tmp_path_factory.mktemp("stranger"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for path, data in FILES.items():
        (folder / path).write_bytes(data)
    return folder


def key_files(publisher: Publisher, folder: Path) -> tuple[str, str]:
    (folder / "key.pem").write_bytes(publisher.private)
    (folder / "key.pub").write_text(publisher.public)
    return str(folder / "key.pem"), str(folder / "key.pub")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_each_accepts_the_others_signature(stranger: Stranger, model: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    publisher = Publisher(ec.generate_private_key(curve))
    private, public = key_files(publisher, tmp_path)
    theirs, ours = tmp_path / "theirs.sig", tmp_path / "ours.sig"
    stranger.run("model_signing", "sign", "key", str(model), "--private_key", private, "--signature", str(theirs))
    signature = trust_bundle.read(theirs.read_bytes())
    assert signature.is_by(publisher.key.public_key())
    assert signature.covers(version_of())
    ours.write_bytes(trust_bundle.sign(publisher.key, "model", named(FILES)))
    verify = ("verify", "key", str(model), "--public_key", public, "--signature")
    assert "Verification succeeded" in stranger.run("model_signing", *verify, str(ours)).stdout
    # What `aicli models sign` makes, beside an image layout.
    version, layout = version_of(), tmp_path / "layout"
    (layout / "blobs/sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text("{}")
    ours.write_bytes(publisher.sign(version.digest))
    verify = ("verify", "key", str(layout), "--public_key", public, "--ignore_unsigned_files", "--signature")
    assert stranger.run("model_signing", *verify, str(ours), check=False).returncode
    shutil.copy(manifest_file(tmp_path), layout / f"blobs/sha256/{version.digest.removeprefix('sha256:')}")
    assert "Verification succeeded" in stranger.run("model_signing", *verify, str(ours)).stdout
    # And what `aicli models export --sign-key` does.
    publisher_keys.sign_folder(publisher.key, layout)
    verify = ("verify", "key", str(layout), "--public_key", public, "--signature", str(layout / "model.sig"))
    assert "Verification succeeded" in stranger.run("model_signing", *verify).stdout


def manifest_file(folder: Path) -> Path:
    (folder / "manifest").write_bytes(manifest_of())
    return folder / "manifest"


def alter(rng: random.Random, publisher: Publisher, good: bytes) -> bytes:
    """Change bytes of a signature, fields of it, or what it signs."""
    data, bundle = bytearray(good), json.loads(good)
    match rng.randrange(5):
        case 0:
            for _ in range(rng.choice([1, 1, 5])):
                data[rng.randrange(len(data))] = rng.randrange(256)
            return bytes(data)
        case 1:
            start = rng.randrange(len(data))
            del data[start : start + rng.randrange(1, 5)]
            return bytes(data)
        case 2:
            data[(start := rng.randrange(len(data))) : start] = rng.randbytes(rng.randrange(1, 4))
            return bytes(data)
        case 3:
            change(rng, bundle)
            return json.dumps(bundle).encode()
        case _:
            # Signed again, by the right key or another one.
            statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
            change(rng, statement)
            payload = json.dumps(statement).encode()
            signer = publisher if rng.random() < 0.9 else Publisher()
            signature = signer.key.sign(trust_bundle._sealed(payload), ec.ECDSA(trust_bundle._HASHES["secp256r1"]))
            encoded = {"sig": base64.b64encode(signature).decode()}
            bundle["dsseEnvelope"] |= {"payload": base64.b64encode(payload).decode(), "signatures": [encoded]}
            return json.dumps(bundle).encode()


def change(rng: random.Random, value: object) -> None:
    """Remove, add, swap or replace something within JSON."""
    places = [(parent, key) for parent in parents(value) for key in (parent if isinstance(parent, dict) else range(len(parent)))]
    parent, key = rng.choice(places)
    match rng.randrange(4):
        case 0:
            del parent[key]
        case 1:
            parent[key] = rng.choice([None, "", 0, [], {}, "0" * 64, "../model.gguf", True])
        case 2 if isinstance(parent, list):
            parent.append(parent[key])
        case 2:
            parent["more"] = 1
        case _:
            other, its = rng.choice(places)
            parent[key], other[its] = other[its], parent[key]


def parents(value: object) -> list[dict[str, object] | list[object]]:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [*([value] if isinstance(value, dict | list) and value else []), *(found for child in children for found in parents(child))]


def is_right(data: bytes, publisher: Publisher) -> bool:
    try:
        signature = trust_bundle.read(data)
    except errors.BadRequest:
        return False
    return signature.is_by(publisher.key.public_key()) and signature.covers(version_of())


def test_a_thousand_altered_signatures_have_the_same_verdict(stranger: Stranger, model: Path, tmp_path: Path) -> None:
    rng, publisher = random.Random(1), Publisher()
    _, public = key_files(publisher, tmp_path)
    good = trust_bundle.sign(publisher.key, "model", named(FILES))
    altered = [good, *(alter(rng, publisher, good) for _ in range(1000))]
    folder = tmp_path / "signatures"
    folder.mkdir()
    for number, data in enumerate(altered):
        (folder / f"{number:04}").write_bytes(data)
    theirs = [line == "1" for line in stranger.run("python", "-c", VERIFY, public, str(model), str(folder)).stdout.split()]
    ours = [is_right(data, publisher) for data in altered]
    assert len(theirs) == len(ours)
    assert theirs[0], "the program works"
    differing = [(own, altered[number].decode("utf-8", "replace")) for number, own in enumerate(ours) if own != theirs[number]]
    assert not differing
    assert 10 < sum(ours) < 500
