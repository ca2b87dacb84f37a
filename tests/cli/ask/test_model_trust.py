"""`aicli models sign`, `verify` and `trust`, with a fake mesh; `test_trusted_models` uses a whole one."""

import json
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization

from cli.ask import model_trust as commands
from cli.output.exit_codes import ExitCode
from shared.api import configuration, model_trust, models
from shared.api.configuration import AppliedConfig, ApplyConfig, ConfigDocument
from shared.api.model_trust import ModelTrust, SignModelVersion
from shared.api.models import ModelVersion, ModelVersions, VersionState
from shared.config_documents import ConfigKind, TrustDocument, TrustMode
from shared.models import trust_bundle
from shared.types import ModelName, UserId
from tests.cli.fake_mesh import Shell
from tests.shared.models.publishers import Publisher, manifest_of, version_of

ADA, EVE = Publisher(), Publisher()
CONTENT = version_of()
VERSION = ModelVersion(
    ModelName("tiny"), 2, CONTENT.digest, VersionState.READY, 5, datetime(2026, 1, 2, tzinfo=UTC), UserId(UUID(int=1))
)  # fmt: skip
OLDER = msgspec.structs.replace(VERSION, version=1, digest="sha256:" + "0" * 64)
RULES = {"tiny*": TrustDocument(mode=TrustMode.WARN, keys=(ADA.public,)), "other": TrustDocument(mode=TrustMode.OFF)}


@pytest.fixture(autouse=True)
def mesh(shell: Shell) -> None:
    def find(request: models.ListModelVersions) -> ModelVersions:
        return ModelVersions(tuple(each for each in (VERSION, OLDER) if request.version in (None, each.version)))

    shell.mesh.answer(models.list_model_versions, find)
    shell.mesh.answer(model_trust.sign_model_version, VERSION)
    for name, publisher in (("ada", ADA), ("eve", EVE)):
        (shell.folder / f"{name}.key").write_bytes(publisher.private)
        (shell.folder / f"{name}.pub").write_text(publisher.public)


def trusted(shell: Shell, *signatures: bytes, content: bytes | None = None) -> None:
    shell.mesh.answer(model_trust.read_model_trust, ModelTrust(RULES, manifest_of() if content is None else content, signatures))


@pytest.mark.parametrize("name", ["tiny@2", f"tiny@{CONTENT.digest}"])
def test_a_version_is_signed_here(shell: Shell, name: str) -> None:
    done = shell("models", "sign", name, "--key", "ada.key")
    key = ADA.key.public_key()
    assert done.stdout.replace("\n", " ") == f"Signed tiny@2 ({CONTENT.digest}) with the key {trust_bundle.fingerprint(key)}. ", done.output
    (request,) = [call.request for call in shell.mesh.calls if isinstance(call.request, SignModelVersion)]
    assert (request.model, request.version) == ("tiny", 2)
    signature = trust_bundle.read(request.signature)
    assert signature.is_by(key)
    assert signature.covers(CONTENT)
    # The private key stays here.
    secret = b"".join(ADA.private.splitlines()[1:-1])
    assert not any(secret[:40] in msgspec.msgpack.encode(call.request) for call in shell.mesh.calls)


def test_a_key_may_have_a_password(shell: Shell) -> None:
    locked = serialization.BestAvailableEncryption(b"secret")
    pem = ADA.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    (shell.folder / "locked.key").write_bytes(pem)
    assert shell("models", "sign", "tiny@2", "--key", "locked.key", stdin="secret\n").exit_code == 0
    refused = shell("models", "sign", "tiny@2", "--key", "locked.key", stdin="wrong\n")
    assert "password is another one" in refused.stderr
    assert "wrong" not in refused.output.replace("Password of the key: wrong", "")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("tiny", "--key", "ada.key"), "names no version"),
        (("tiny@stable", "--key", "ada.key"), "names no version"),
        (("tiny@7", "--key", "ada.key"), "there is no version tiny@7"),
        (("tiny@sha256:" + "1" * 64, "--key", "ada.key"), "there is no version tiny@sha256:1"),
        (("tiny@2", "--key", "ada.pub"), "no private key in PEM"),
        (("tiny@2", "--key", "none.key"), "can't be read: No such file"),
    ],
)
def test_what_cannot_be_signed(shell: Shell, words: tuple[str, ...], why: str) -> None:
    done = shell("models", "sign", *words)
    assert done.exit_code != 0
    assert why in done.stderr
    assert not any(isinstance(call.request, SignModelVersion) for call in shell.mesh.calls)


def test_a_version_is_verified_here(shell: Shell) -> None:
    trusted(shell, EVE.sign(CONTENT.digest), ADA.sign(CONTENT.digest))
    done = shell("models", "verify", "tiny@2")
    assert done.exit_code == 0, done.output
    assert "A trusted key has signed tiny@2" in done.stdout
    assert shell("models", "verify", "tiny@2", "--key", "eve.pub").exit_code == 0


@pytest.mark.parametrize(
    ("signatures", "words", "why"),
    [
        ((), (), "nobody has signed it"),
        ((EVE.sign(CONTENT.digest),), (), "no trusted key has signed it"),
        ((ADA.sign(CONTENT.digest),), ("--key", "eve.pub"), "no trusted key has signed it"),
        ((ADA.sign("sha256:" + "1" * 64),), (), "its signature is for other files"),
    ],
)
def test_an_untrusted_version_fails(shell: Shell, signatures: tuple[bytes, ...], words: tuple[str, ...], why: str) -> None:
    trusted(shell, *signatures)
    done = shell("models", "verify", "tiny@2", *words)
    assert done.exit_code == ExitCode.FAILED, done.output
    assert f"tiny@2 is not trusted: {why}" in done.stderr


def test_a_gateway_that_swaps_the_manifest_is_found_out(shell: Shell) -> None:
    other = manifest_of({"model.gguf": b"other"})
    trusted(shell, ADA.sign(CONTENT.digest), content=other)
    assert "the gateway sent the manifest sha256:" in shell("models", "verify", "tiny@2").stderr


def test_without_a_rule_a_key_must_be_named(shell: Shell) -> None:
    shell.mesh.answer(model_trust.read_model_trust, ModelTrust({}, manifest_of(), (ADA.sign(CONTENT.digest),)))
    assert "no rule of the mesh is for tiny@2" in shell("models", "verify", "tiny@2").stderr
    assert shell("models", "verify", "tiny@2", "--key", "ada.pub").exit_code == 0


def test_rules_are_listed(shell: Shell) -> None:
    trusted(shell)
    shown = shell("models", "trust", "show").stdout
    assert [line.split()[:2] for line in shown.splitlines()] == [["MODELS", "MODE"], ["other", "off"], ["tiny*", "warn"]]
    assert trust_bundle.fingerprint(ADA.key.public_key())[:16] in shown
    assert len(json.loads(shell("models", "trust", "show", "--json").stdout)) == 2


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (("tiny*", "--mode", "enforce"), (ADA.public,)),
        (("tiny*", "--mode", "enforce", "--key", "eve.pub", "--key", "ada.pub"), (EVE.public, ADA.public)),
        (("new", "--mode", "enforce"), ()),
    ],
)
def test_a_rule_is_set(shell: Shell, words: tuple[str, ...], keys: tuple[str, ...]) -> None:
    trusted(shell)
    shell.mesh.answer(configuration.apply_config, AppliedConfig(2, ()))
    done = shell("models", "trust", "set", *words)
    assert done.exit_code == 0, done.output
    (request,) = [call.request for call in shell.mesh.calls if isinstance(call.request, ApplyConfig)]
    (document,) = request.documents
    assert document == ConfigDocument(ConfigKind.TRUST, words[0], document.body)
    assert msgspec.json.decode(document.body or "", type=TrustDocument) == TrustDocument(mode=TrustMode.ENFORCE, keys=keys)


def test_the_modes_are_those_of_rules() -> None:
    assert tuple(TrustMode) == commands.MODES
