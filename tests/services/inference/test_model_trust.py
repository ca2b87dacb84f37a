"""What a worker may load: by the mesh's rules and signatures, which gateways give it or not, and by its own rules."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.inference import model_trust
from services.inference.model_trust import ModelTrust
from services.inference.models import model_discovery, model_store
from services.inference.models.catalog import CatalogEntry, Defaults
from services.inference.models.model_store import ModelStore
from services.inference.settings import InferenceSettings
from shared import errors
from shared.api import model_trust as api
from shared.api.model_copies import VERSION_SOURCE
from shared.api.model_trust import TakenTrust, VersionTrust
from shared.config_documents import TrustDocument, TrustMode
from shared.models import manifest, trust_bundle
from shared.models.trust_rules import TRUSTED, Distrust
from shared.node import lifecycle
from shared.types import ModelName
from tests.services.inference import test_version_copy as copy_tests
from tests.services.inference.standins import until
from tests.services.inference.test_version_copy import MODEL, PROJECTOR, Origin
from tests.shared.models.publishers import Publisher

quick = copy_tests.quick
ADA, EVE = Publisher(), Publisher()
ONE, TWO = ModelName("llama3@1"), ModelName("llama3@2")
HASHES = tuple(manifest.digest_of(data).removeprefix("sha256:") for data in (MODEL, PROJECTOR))


def rule(*publishers: Publisher, mode: TrustMode = TrustMode.ENFORCE) -> TrustDocument:
    return TrustDocument(mode=mode, keys=tuple(each.public for each in publishers))


@dataclass
class Gateway:
    """Answers `gateway.takeTrust`."""

    rules: dict[str, TrustDocument] = field(default_factory=dict)
    versions: dict[ModelName, VersionTrust] = field(default_factory=dict)
    refusal: errors.AimeshError | None = None
    #: What a gateway of a newer release answers.
    newer: TakenTrust | None = None
    asked: list[tuple[ModelName, ...]] = field(default_factory=list)

    async def call(self, method: Any, request: api.TakeTrust, *, deadline_seconds: float) -> TakenTrust:
        assert method is api.take_trust
        self.asked.append(msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=api.TakeTrust).versions)
        if self.refusal is not None:
            raise self.refusal
        return self.newer or TakenTrust.of(self.rules, {name: each for name, each in self.versions.items() if name in request.versions})


@dataclass
class Worker:
    folder: Path
    gateway: Gateway = field(default_factory=Gateway)
    origin: Origin = field(default_factory=Origin)

    @property
    def store(self) -> ModelStore:
        return ModelStore(self.folder / "store")

    def settings(self, **more: Any) -> InferenceSettings:
        return InferenceSettings(node_key_file=self.folder / "worker.nk", mesh_state_file=self.folder / "worker.state", **more)

    async def get(self, name: ModelName, *signers: Publisher) -> str:
        """Copy a version that these have signed. Return its digest."""
        source = self.origin.push({f"{name}.gguf": MODEL, "mmproj.gguf": PROJECTOR})
        digest = source.removeprefix(VERSION_SOURCE)
        self.gateway.versions[name] = VersionTrust(digest, tuple(each.sign(digest) for each in signers))
        await copy_tests.get(self.origin, self.store, source, name)
        return digest

    def entry(self, name: ModelName) -> CatalogEntry:
        return next(each for each in model_discovery.in_store(self.store, Defaults()) if each.name == name)

    @asynccontextmanager
    async def running(self, *, rounds: int = 2, **more: Any) -> AsyncIterator[ModelTrust]:
        rpc: Any = self.gateway
        trust = ModelTrust.open(self.settings(**more))
        async with lifecycle.background() as tasks:
            tasks.create_task(trust.run(rpc, self.store))
            before = len(self.gateway.asked)
            await until(lambda: len(self.gateway.asked) >= before + rounds)
            yield trust

    def write(self, name: str, rules: dict[str, TrustDocument]) -> Path:
        """Write a file for MODEL_TRUST, in JSON, which is YAML, too."""
        file = self.folder / name
        file.write_bytes(msgspec.json.encode({"trust": rules}))
        return file


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr(model_trust, "ASK_SECONDS", 0.01)
    monkeypatch.setattr(model_trust, "LOOK_SECONDS", 0.002)
    return Worker(tmp_path)


async def test_with_enforce_only_a_signed_version_may_be_loaded(worker: Worker) -> None:
    await worker.get(ONE, EVE, ADA)
    await worker.get(TWO, EVE)
    worker.gateway.rules = {"llama*": rule(ADA)}
    async with worker.running() as trust:
        one, two = worker.entry(ONE), worker.entry(TWO)
        assert trust.judge(one, HASHES) == trust.judge(one, ()) == TRUSTED
        refused = trust.judge(two, HASHES)
        assert (refused.cause, refused.is_refused) == (Distrust.OTHER_KEY, True)
        assert refused.reason == "no trusted key has signed it; the mesh's rule for llama* wants a signature by one of its 1 keys"
        # Whoever stole the key signs no more: it is removed from the rule.
        worker.gateway.rules = {"llama*": rule(EVE)}
        await until(lambda: trust.judge(two, HASHES) == TRUSTED)
        worker.gateway.rules = {"llama*": rule()}
        await until(lambda: trust.judge(one, HASHES).is_refused and trust.judge(two, HASHES).is_refused)


async def test_a_rule_that_only_a_newer_gateway_knows_trusts_nothing(worker: Worker) -> None:
    await worker.get(ONE, ADA)
    worker.gateway.rules = {"llama*": rule(ADA)}
    async with worker.running() as trust:
        one, other = worker.entry(ONE), CatalogEntry(name=ModelName("qwen"), file=Path("a"))
        assert trust.judge(one, HASHES) == trust.judge(other, ()) == TRUSTED
        rules = {"llama*": {"mode": "warn", "tomorrow": 1}, "phi": {"mode": "off"}}
        worker.gateway.newer = TakenTrust(rules, dict(worker.gateway.versions))
        await until(lambda: trust.judge(one, HASHES).is_refused)
        assert trust.judge(other, ()) == TRUSTED, "no rule is for it"


DAMAGES = {
    "garbage": b"garbage", "deep": b"[" * 100_000, "empty": b"",
    "of a newer release": b'{"rules": {"llama*": {"mode": "enforce", "tomorrow": 1}}}', "writable for others": None,
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
async def test_what_a_gateway_said_last_is_never_absent_because_it_cannot_be_read(worker: Worker, damage: str) -> None:
    await worker.get(ONE, ADA)
    async with worker.running():
        pass
    file = worker.settings().state_file.with_suffix(".trust")
    if (body := DAMAGES[damage]) is None:
        # Anyone may have changed it.
        file.chmod(0o620)
    else:
        file.write_bytes(body)
    worker.gateway.refusal = errors.Unavailable("starting")
    async with worker.running() as trust:
        assert trust.judge(worker.entry(ONE), HASHES).is_refused
        worker.gateway.refusal = None
        await until(lambda: trust.judge(worker.entry(ONE), HASHES) == TRUSTED)


async def test_a_revoked_version_stays_revoked_without_its_manifest(worker: Worker) -> None:
    digest = await worker.get(ONE, ADA)
    worker.gateway.versions[ONE] = VersionTrust(digest, revoked="it leaks")
    async with worker.running() as trust:
        entry = worker.entry(ONE)
        for found in (entry, replace(entry, version=None)):
            assert trust.judge(found, HASHES).reason == "it was revoked: it leaks"


async def test_without_rules_everything_may_be_loaded(worker: Worker) -> None:
    await worker.get(ONE)
    async with worker.running() as trust:
        assert trust.judge(worker.entry(ONE), HASHES) == trust.judge(CatalogEntry(name=ONE, file=Path("a")), ()) == TRUSTED


@pytest.mark.parametrize("mode", [TrustMode.WARN, TrustMode.ENFORCE])
async def test_a_model_from_elsewhere_has_no_signature(worker: Worker, mode: TrustMode) -> None:
    worker.gateway.rules = {"llama*": rule(ADA, mode=mode)}
    async with worker.running() as trust:
        for names in ({"name": ModelName("llama3")}, {"name": ModelName("qwen"), "aliases": (ModelName("llama"),)}):
            verdict = trust.judge(CatalogEntry(file=Path("a"), **names), ())
            assert (verdict.cause, verdict.is_refused) == (Distrust.NO_VERSION, mode is TrustMode.ENFORCE)
        assert trust.judge(CatalogEntry(name=ModelName("qwen"), file=Path("a")), ()) == TRUSTED


async def test_altered_files_and_manifests_are_refused(worker: Worker) -> None:
    digest = await worker.get(ONE, ADA)
    worker.gateway.rules = {"*": rule(ADA)}
    async with worker.running() as trust:
        entry = worker.entry(ONE)
        assert trust.judge(entry, HASHES) == TRUSTED
        # The name in the store leads to another file, with its right digest.
        assert trust.judge(entry, (HASHES[1], "1" * 64)).cause is Distrust.NO_VERSION
        # The same manifest under another name has no signature there.
        assert trust.judge(replace(entry, name=TWO), HASHES).cause is Distrust.UNSIGNED
    kept = worker.store.blob(digest.removeprefix("sha256:"))
    assert manifest.digest_of(kept.read_bytes()) == digest
    model_store._read_version.cache_clear()
    kept.write_bytes(kept.read_bytes().replace(b"llama3@1.gguf", b"llama3@9.gguf"))
    async with worker.running() as trust:
        assert worker.entry(ONE).version is None
        assert trust.judge(worker.entry(ONE), HASHES).cause is Distrust.NO_VERSION


async def test_a_signature_of_the_files_will_do(worker: Worker) -> None:
    digest = await worker.get(ONE)
    files = {"llama3@1.gguf": HASHES[0], "mmproj.gguf": HASHES[1]}
    worker.gateway.versions[ONE] = VersionTrust(digest, (b"garbage", trust_bundle.sign(ADA.key, "folder", files.items())))
    worker.gateway.rules = {"*": rule(ADA)}
    async with worker.running() as trust:
        assert trust.judge(worker.entry(ONE), HASHES) == TRUSTED


async def test_a_revoked_version_is_refused_without_any_rule(worker: Worker) -> None:
    digest = await worker.get(ONE, ADA)
    await worker.get(TWO)
    async with worker.running() as trust:
        one, two = worker.entry(ONE), worker.entry(TWO)
        worker.gateway.versions[ONE] = VersionTrust(digest, (), "it leaks")
        await until(lambda: trust.judge(one, HASHES).is_refused)
        assert (trust.judge(one, HASHES).cause, trust.judge(one, HASHES).reason) == (Distrust.REVOKED, "it was revoked: it leaks")
        assert trust.judge(two, HASHES) == TRUSTED


async def test_the_last_answer_counts_while_no_gateway_answers_also_after_a_restart(worker: Worker) -> None:
    await worker.get(ONE, ADA)
    await worker.get(TWO)
    worker.gateway.rules = {"*": rule(ADA)}
    async with worker.running() as trust:
        await until(lambda: trust.judge(worker.entry(TWO), HASHES).is_refused)
    # Away, and of a release that doesn't know the method.
    for refusal in (errors.NotReachable("no gateway"), errors.UnknownMethod("there is no method gateway.takeTrust")):
        worker.gateway.refusal = refusal
        async with worker.running() as trust:
            assert trust.judge(worker.entry(ONE), HASHES) == TRUSTED
            assert trust.judge(worker.entry(TWO), HASHES).cause is Distrust.UNSIGNED
    worker.gateway.refusal, worker.gateway.rules = None, {}
    async with worker.running() as trust:
        await until(lambda: trust.judge(worker.entry(TWO), HASHES) == TRUSTED)


@pytest.mark.parametrize(("own", "mesh"), list(itertools.product(TrustMode, TrustMode)))
async def test_the_stricter_of_both_rules_counts(worker: Worker, own: TrustMode, mesh: TrustMode) -> None:
    await worker.get(ONE, EVE)
    file = worker.write("own.yaml", {"*": rule(ADA, mode=own)})
    # It would allow what the mesh forbids.
    worker.gateway.rules = {"llama3": rule(ADA, mode=mesh)}
    async with worker.running(model_trust=file) as trust:
        verdict = trust.judge(worker.entry(ONE), HASHES)
        modes = {own, mesh}
        assert verdict.is_refused is (TrustMode.ENFORCE in modes)
        assert (verdict.cause is None) is (modes == {TrustMode.OFF})
        if verdict.is_refused:
            assert ("MODEL_TRUST" in verdict.reason) is (own is TrustMode.ENFORCE and mesh is not TrustMode.ENFORCE)


async def test_both_rules_want_a_key_of_theirs(worker: Worker) -> None:
    """The mesh trusts Eve's key; this worker does not."""
    await worker.get(ONE, EVE)
    await worker.get(TWO, EVE, ADA)
    worker.gateway.rules = {"*": rule(EVE)}
    async with worker.running(model_trust=worker.write("own.yaml", {"*": rule(ADA)})) as trust:
        assert trust.judge(worker.entry(ONE), HASHES).reason.startswith("no trusted key has signed it; MODEL_TRUST for *")
        assert trust.judge(worker.entry(TWO), HASHES) == TRUSTED


def test_the_own_rules_are_written_as_in_the_configuration(worker: Worker) -> None:
    file = worker.folder / "own.yaml"
    indented = ADA.public.replace("\n", "\n        ")
    file.write_text(f"trust:\n  llama*:\n    mode: enforce\n    keys:\n      - |\n        {indented}\n  other: {{mode: 'off'}}\n")
    own = ModelTrust.open(worker.settings(model_trust=file)).own
    assert own == {"llama*": rule(ADA), "other": rule(mode=TrustMode.OFF)}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expected `object`"),
        ("[", "line 1"),
        ("trust: {a: {mode: never}}", "Invalid enum value 'never'"),
        ("trust: {a: {mode: enforce, keys: [x]}}", "no public key in PEM"),
        ("trust: {a b: {mode: enforce}}", "matching regex"),
        ("rules: {}", "unknown field `rules`"),
        ("trust: {a: {mode: enforce, kyes: []}}", "unknown field `kyes`"),
        ("[" * 100_000, "nested more than 32 levels deep"),
        (
            "a: &a [x, x]\n" + "\n".join(f"{x}: &{x} [*{y}, *{y}, *{y}, *{y}]" for y, x in itertools.pairwise("abcdefghijklm")),
            "more than 10000",
        ),
    ],
)
def test_own_rules_with_a_mistake_end_the_start(worker: Worker, text: str, why: str) -> None:
    file = worker.folder / "own.yaml"
    file.write_text(text)
    with pytest.raises(errors.BadSettings, match=r"MODEL_TRUST: .*own\.yaml can't be used: ") as refused:
        ModelTrust.open(worker.settings(model_trust=file))
    assert why in refused.value.message
    file.unlink()
    with pytest.raises(errors.BadSettings, match="No such file"):
        ModelTrust.open(worker.settings(model_trust=file))


async def test_a_worker_asks_for_a_few_versions_at_a_time(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [ModelName(f"llama3@{number}") for number in range(1, 7)]
    for name in names:
        await worker.get(name, ADA)
    worker.gateway.rules = {"*": rule(ADA)}
    async with worker.running() as trust:
        await until(lambda: all(trust.judge(worker.entry(name), HASHES) == TRUSTED for name in names))
    assert worker.gateway.asked[:2] == [tuple(names[:4]), tuple(names[4:])]
    # A new version is asked for at once.
    monkeypatch.setattr(model_trust, "ASK_SECONDS", 1000.0)
    async with worker.running(rounds=1) as trust:
        await worker.get(ModelName("llama3@7"), ADA)
        await until(lambda: trust.judge(worker.entry(ModelName("llama3@7")), HASHES) == TRUSTED)
