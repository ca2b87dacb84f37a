"""Signatures of versions on a real PostgreSQL: who may add them, and what workers get."""

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.gateway.rpc_api.model_trust_rpc import ModelTrustRpc
from shared import errors
from shared.api import model_trust as api
from shared.api import models
from shared.api.auth import Principal
from shared.api.model_trust import VersionTrust
from shared.config_documents import TrustDocument, TrustMode
from shared.models import trust_bundle
from shared.models.manifest import MAX_SIGNATURE_BYTES
from shared.stores import objects
from shared.types import ModelName
from tests.services.gateway.fakes import rpc_call
from tests.services.gateway.models import registries
from tests.services.gateway.models.registries import ADMIN, DEVELOPER, LLAMA, STRANGER, Gateway, push_of, small
from tests.shared.models.publishers import Publisher, named

ADA, EVE = Publisher(), Publisher()
RULE = TrustDocument(mode=TrustMode.ENFORCE, keys=(ADA.public,))
PUSH = push_of({"model.bin": small(1)})
NAME = ModelName("llama3@1")


@pytest.fixture
async def gateway(plain_url: str, tmp_path: Path) -> AsyncIterator[Gateway]:
    async with registries.running(plain_url, objects.open_store(str(tmp_path / "origin"), {})) as found:
        yield found


@pytest.fixture
def rpc(gateway: Gateway) -> ModelTrustRpc:
    live: Any = SimpleNamespace(trust_rules=lambda: {"llama*": RULE})
    acts: Any = gateway.acts
    return ModelTrustRpc(live, gateway.store, gateway.registry, acts)


async def sign(rpc: ModelTrustRpc, by: Principal, signature: bytes, model: ModelName = LLAMA) -> models.ModelVersion:
    return await rpc.sign(api.SignModelVersion(model, 1, signature), rpc_call(by))


async def take(rpc: ModelTrustRpc, *names: str) -> dict[ModelName, VersionTrust]:
    taken = await rpc.take(api.TakeTrust(tuple(map(ModelName, names))), rpc_call(ADMIN))
    assert taken.read_rules() == {"llama*": RULE}
    return taken.versions


async def test_workers_get_the_signatures_of_their_versions(gateway: Gateway, rpc: ModelTrustRpc) -> None:
    made = await gateway.push(ADMIN, PUSH)
    assert await take(rpc, NAME, "llama3@2", "qwen", "llama3@x", "llama3@99999999999") == {NAME: VersionTrust(made.digest)}
    first, second = ADA.sign(made.digest), EVE.sign(made.digest)
    names = [trust_bundle.fingerprint(publisher.key.public_key()) for publisher in (ADA, EVE)]
    assert (await sign(rpc, ADMIN, first)).signed_by == (names[0],)
    assert (await sign(rpc, ADMIN, second)).signed_by == tuple(names)
    assert gateway.acts.reported[-1] == ("model.sign", NAME, {"key": trust_bundle.fingerprint(EVE.key.public_key())})
    assert await take(rpc, NAME) == {NAME: VersionTrust(made.digest, (first, second))}
    # A key's new signature replaces its old one.
    again = trust_bundle.sign(ADA.key, "folder", named({"model.bin": small(1)}))
    await sign(rpc, ADMIN, again)
    assert set((await take(rpc, NAME))[NAME].signatures) == {again, second}
    read = await rpc.read(api.ReadModelTrust(LLAMA, 1), rpc_call(STRANGER))
    assert (read.rules, read.manifest, set(read.signatures)) == ({"llama*": RULE}, PUSH.manifest, {again, second})
    assert await rpc.read(api.ReadModelTrust(), rpc_call(STRANGER)) == api.ModelTrust({"llama*": RULE})


async def test_what_is_no_signature_of_the_version_is_refused(gateway: Gateway, rpc: ModelTrustRpc) -> None:
    made = await gateway.push(ADMIN, PUSH)
    other = trust_bundle.sign(ADA.key, "folder", named({"model.bin": b"other"}))
    with pytest.raises(errors.BadRequest, match="is not one of llama3@1") as refused:
        await sign(rpc, ADMIN, other)
    assert made.digest in refused.value.hint
    for garbage in (b"", b"[" * 60_000, ADA.sign(made.digest)[:-1], b" " * (MAX_SIGNATURE_BYTES + 1)):
        with pytest.raises(errors.BadRequest, match="the signature"):
            await sign(rpc, ADMIN, garbage)
    good = ADA.sign(made.digest)
    padded = good + b" " * (MAX_SIGNATURE_BYTES - len(good))
    await sign(rpc, ADMIN, padded)
    with pytest.raises(errors.TooLarge, match="all signatures of a version may have 65536 bytes"):
        await sign(rpc, ADMIN, EVE.sign(made.digest))
    assert (await take(rpc, NAME))[NAME].signatures == (padded,)


async def test_only_who_may_change_a_model_signs_it(gateway: Gateway, rpc: ModelTrustRpc) -> None:
    made = await gateway.push(DEVELOPER, PUSH, ModelName("acme"))
    signature = ADA.sign(made.digest)
    await sign(rpc, DEVELOPER, signature, ModelName("acme"))
    with pytest.raises(errors.NotFound):
        await sign(rpc, STRANGER, signature, ModelName("acme"))
    with pytest.raises(errors.NotFound):
        await rpc.read(api.ReadModelTrust(ModelName("acme"), 1), rpc_call(STRANGER))
    await gateway.push(ADMIN, PUSH)
    with pytest.raises(errors.NotAllowed):
        await sign(rpc, DEVELOPER, signature)


async def test_a_revoked_version_is_told_with_its_reason(gateway: Gateway, rpc: ModelTrustRpc) -> None:
    made = await gateway.push(ADMIN, PUSH)
    await gateway.push(DEVELOPER, PUSH, ModelName("acme"))
    await gateway.registry.revoke(models.RevokeModelVersion(LLAMA, 1, "it leaks"), rpc_call(ADMIN))
    # The same bytes under another name are another owner's.
    assert await take(rpc, NAME, "acme@1") == {NAME: VersionTrust(made.digest, (), "it leaks"), "acme@1": VersionTrust(made.digest)}
