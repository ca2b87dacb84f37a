"""Pulling from a hub and from registries, against fakes on loopback."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.inference.models import download, model_discovery, model_store, store_program
from services.inference.models.catalog import Defaults
from services.inference.models.model_store import ModelStore
from shared import errors
from shared.api.inference import ModelSources, StoredModel, StoreRequest, StoreResult
from shared.protocol.directory import ModelPull
from shared.timing.backoff import Backoff
from tests import gguf_files
from tests.services.inference.models import fake_hub, ranged_server
from tests.services.inference.models.fake_hub import FakeHub

BODY = ranged_server.model_bytes(200_000)
OTHER = BODY[:-1] + b"!"
OLLAMA = "application/vnd.ollama.image.model"
TITLE = "org.opencontainers.image.title"


def part(number: int, count: int) -> bytes:
    pairs = {
        "general.architecture": gguf_files.text("llama"),
        "llama.context_length": gguf_files.single("u32", 64),
        "split.no": gguf_files.single("u16", number - 1),
        "split.count": gguf_files.single("u16", count),
    }
    return gguf_files.joined(gguf_files.file(pairs, [])) + bytes([number]) * 70_000


PARTS = [part(number, 3) for number in (1, 2, 3)]


def projector(number: int = 1) -> bytes:
    return gguf_files.joined(gguf_files.file({"general.architecture": gguf_files.text("clip")}, [])) + bytes([number]) * 10_000


SEES = "application/vnd.ollama.image.projector"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "BACKOFF", Backoff(first_seconds=0.001, longest_seconds=0.001))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub.serving() as site:
        yield site


def run(store: ModelStore, hub: FakeHub, target: str, token: str | None = None, **options: object) -> StoreResult:
    sources = ModelSources(hub_url=hub.url, hub_token=token, mirrors={"registry.ollama.ai": hub.url, "mirrored.example": f"{hub.url}/m/"})
    request = StoreRequest(command="pull", folder=str(store._root), target=target, sources=sources, **options)  # type: ignore[arg-type]
    return store_program.carry_out(request)


def pull(store: ModelStore, hub: FakeHub, target: str, token: str | None = None, **options: object) -> StoredModel:
    return run(store, hub, target, token, **options).models[0]


def token_file(tmp_path: Path, text: str) -> str:
    (tmp_path / "token").write_text(text)
    return str(tmp_path / "token")


# --- the hub ------------------------------------------------------------------------------------------------------------------


def test_file_of_the_hub_is_chosen_by_its_quantization_and_checked(store: ModelStore, hub: FakeHub) -> None:
    hub.add_repository("org/model-GGUF", {"model-Q4_K_M.gguf": OTHER, "model-Q8_0.gguf": BODY, "IQ8_0.txt": b""})
    pulled = pull(store, hub, "hf:org/model-GGUF:q8_0")
    assert (pulled.name, pulled.digest, pulled.source) == ("model-Q8_0", hashlib.sha256(BODY).hexdigest(), "hf:org/model-GGUF:q8_0")
    assert hub.paths() == ["/api/models/org/model-GGUF?blobs=true", f"/org/model-GGUF/resolve/{'a' * 40}/model-Q8_0.gguf"]
    assert run(store, hub, "hf:org/model-GGUF:q8_0").unchanged
    assert len(hub.asked) == 3, "the list only"
    assert pull(store, hub, "hf:org/model-GGUF").name == "model-Q4_K_M"


@pytest.mark.parametrize("quant", ["q4", "Q4_K", "Q6_K", "4_K_M", "..", "nothing.gguf"])
def test_quantization_that_fits_no_file_is_refused_with_the_list(store: ModelStore, hub: FakeHub, quant: str) -> None:
    hub.add_repository("org/model", {"model-Q4_K_M.gguf": OTHER, "model-Q8_0.gguf": BODY})
    with pytest.raises(errors.AimeshError, match=r"it has: model-Q4_K_M, model-Q8_0|is not a model of the hub"):
        pull(store, hub, f"hf:org/model:{quant}")


def test_several_models_without_a_usual_quantization_are_listed(store: ModelStore, hub: FakeHub) -> None:
    hub.add_repository("org/model", {"a-Q2_K.gguf": BODY, "b-Q3_K.gguf": BODY})
    with pytest.raises(errors.NotFound, match="no model with Q4_K_M or Q8_0 or Q4_0 in the name; it has: a-Q2_K, b-Q3_K"):
        pull(store, hub, "hf:org/model")
    assert pull(store, hub, "hf:org/model:b-Q3_K.gguf").name == "b-Q3_K"
    hub.add_repository("org/two", {"a-Q8_0.gguf": BODY, "b-Q8_0.gguf": BODY})
    with pytest.raises(errors.NotFound, match="several models with Q8_0 in the name; it has: a-Q8_0, b-Q8_0"):
        pull(store, hub, "hf:org/two:Q8_0")


def test_parts_are_pulled_together_resumed_and_served_from_one_folder(store: ModelStore, hub: FakeHub) -> None:
    names = [f"Q4_0/big-Q4_0-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    hub.add_repository("org/big", dict(zip(reversed(names), reversed(PARTS), strict=True)))
    second = f"/org/big/resolve/{'a' * 40}/{names[1]}"
    hub.cuts[second] = 30_000
    hub.statuses[second] = [404]
    with pytest.raises(errors.NotFound, match="there is no"):
        pull(store, hub, "hf:org/big:Q4_0", name="refused")
    pulled = pull(store, hub, "hf:org/big:Q4_0")
    assert (pulled.name, pulled.parts, pulled.size) == ("big-Q4_0", 3, sum(map(len, PARTS)))
    assert hub.paths().count(f"/org/big/resolve/{'a' * 40}/{names[0]}") == 1, "the first part was complete"
    (entry,) = model_discovery.in_store(store, Defaults())
    assert entry.file.name == "model-00001-of-00003.gguf"
    assert [entry.file.with_name(f"model-{number:05}-of-00003.gguf").read_bytes() for number in (1, 2, 3)] == PARTS
    assert run(store, hub, "hf:org/big:Q4_0").unchanged
    assert store.remove("big-Q4_0")[1] == pulled.size
    assert [path for path in store._root.rglob("*") if path.is_file() and path.name != "lock"] == []


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"m-Q8_0.gguf": BODY, "mmproj.gguf": projector()}, 1),
        ({"m-Q8_0.gguf": BODY, "m-mmproj-BF16.gguf": projector(), "m-mmproj-F16.gguf": projector(2), "mmproj-F32.gguf": projector(3)}, 2),
        ({"m-Q8_0.gguf": BODY, "mmproj-Q8_0.gguf": projector(), "mmproj-F32.gguf": projector(2)}, 0),
        ({"Q8_0/m.gguf": BODY, "mmproj.gguf": projector(), "other/mmproj.gguf": projector(2)}, 1),
        ({f"Q8_0/m-{number:05}-of-00003.gguf": body for number, body in enumerate(PARTS, 1)} | {"mmproj-m.gguf": projector()}, 1),
    ],
)
def test_projector_of_the_hub_is_pulled_with_its_model(store: ModelStore, hub: FakeHub, files: dict[str, bytes], wanted: int) -> None:
    hub.add_repository("org/sees", files)
    pulled = pull(store, hub, "hf:org/sees:Q8_0")
    (entry,) = model_discovery.in_store(store, Defaults())
    assert (entry.projector and entry.projector.read_bytes()) == (projector(wanted) if wanted else None)
    assert pulled.size == sum(len(body) for path, body in files.items() if "mmproj" not in path) + len(projector()) * bool(wanted)
    assert run(store, hub, "hf:org/sees:Q8_0").unchanged
    assert store.remove(pulled.name)[1] == pulled.size
    assert [path for path in store._root.rglob("*") if path.is_file() and path.name != "lock"] == []


def test_projector_is_named_or_left_out(store: ModelStore, hub: FakeHub) -> None:
    hub.add_repository("org/sees", {"m.gguf": BODY, "mmproj-a.gguf": projector(1), "mmproj-b.gguf": projector(2)})
    hub.add_repository("org/other", {"n.gguf": BODY, "mmproj-n.gguf": projector(3)})
    assert pull(store, hub, "hf:org/other", name="n", projector="none").projector == ""
    for wanted, number in (("hf:org/sees:mmproj-b.gguf", 2), (f"{hub.url}/org/other/resolve/{'a' * 40}/mmproj-n.gguf", 3)):
        assert pull(store, hub, "hf:org/sees", projector=wanted).projector == hashlib.sha256(projector(number)).hexdigest()
    assert len(list(store._blobs.iterdir())) == 2, "the model is stored once, and the first projector is gone"
    with pytest.raises(errors.BadRequest, match="the file for images is not usable: it is not a projector"):
        pull(store, hub, "hf:org/sees", projector="hf:org/other:n.gguf", name="wrong")
    assert [model.name for model in store.models()] == ["m", "n"]


def test_incomplete_parts_are_refused(store: ModelStore, hub: FakeHub) -> None:
    hub.add_repository("org/big", {"big-00001-of-00003.gguf": PARTS[0], "big-00003-of-00003.gguf": PARTS[2]})
    with pytest.raises(errors.PeerError, match="not one model and all its parts"):
        pull(store, hub, "hf:org/big")
    assert len(hub.asked) == 1


def test_wrong_checksum_of_the_hub_is_refused_and_the_file_deleted(store: ModelStore, hub: FakeHub) -> None:
    hub.add_repository("org/model", {"model.gguf": BODY})
    hub.bodies[f"/org/model/resolve/{'a' * 40}/model.gguf"] = OTHER
    with pytest.raises(errors.PeerError, match="but should have"):
        pull(store, hub, "hf:org/model")
    assert store.models() == ()


@pytest.mark.parametrize("path", ["../../etc/x.gguf", "a/../b.gguf", "/x.gguf", "a//b.gguf", "a\\b.gguf", "a\nb.gguf", "./x.gguf"])
def test_paths_that_lead_elsewhere_are_refused(store: ModelStore, hub: FakeHub, path: str) -> None:
    hub.add_repository("org/model", {path: BODY})
    with pytest.raises(errors.PeerError, match="unusable name"):
        pull(store, hub, "hf:org/model", name="model")
    assert len(hub.asked) == 1


def test_file_name_that_cannot_be_a_models_name_needs_another(store: ModelStore, hub: FakeHub) -> None:
    hub.add_repository("org/model", {"some file.gguf": BODY})
    with pytest.raises(errors.BadRequest, match="can't be the name of a model"):
        pull(store, hub, "hf:org/model")
    assert pull(store, hub, "hf:org/model", name="model").digest == hashlib.sha256(BODY).hexdigest()
    assert hub.paths()[-1].endswith("/some%20file.gguf")


@pytest.mark.parametrize("sha", ["../x", "", "main"])
def test_revision_that_is_none_is_refused(store: ModelStore, hub: FakeHub, sha: str) -> None:
    hub.add_repository("org/model", {"model.gguf": BODY}, sha=sha)
    with pytest.raises(errors.PeerError, match="unusable name"):
        pull(store, hub, "hf:org/model")


@pytest.mark.parametrize("target", ["hf:model", "hf:../..", "hf:a/b/c", "hf:a/..", "hf:a b/c", "hf:a/b:", "hf:-a/b", "hf:"])
def test_references_that_are_no_model_of_the_hub_are_refused(store: ModelStore, hub: FakeHub, target: str) -> None:
    with pytest.raises(errors.BadRequest, match="not a model of the hub"):
        pull(store, hub, target)
    assert hub.asked == []


def test_token_goes_to_the_hub_and_not_to_where_it_redirects(store: ModelStore, hub: FakeHub) -> None:
    hub.add_repository("org/model", {"model.gguf": BODY})
    hub.tokens = {"/": "Bearer hub-secret"}
    with pytest.raises(errors.NotAllowed, match="refused access"):
        pull(store, hub, "hf:org/model")
    with fake_hub.serving() as storage:
        path = f"/org/model/resolve/{'a' * 40}/model.gguf"
        storage.bodies[path] = BODY
        hub.elsewhere = {"/org/": storage.url}
        assert pull(store, hub, "hf:org/model", "hub-secret").digest == hashlib.sha256(BODY).hexdigest()
    assert [headers.get("Authorization") for _, headers in storage.asked] == [None]


def test_list_of_files_survives_server_errors_but_not_all(store: ModelStore, hub: FakeHub) -> None:
    hub.add_repository("org/model", {"model.gguf": BODY})
    hub.statuses["/api/models/org/model"] = [500, 503, 429]
    assert pull(store, hub, "hf:org/model").name == "model"
    hub.statuses["/api/models/org/model"] = [500] * 20
    with pytest.raises(errors.Unavailable, match="HTTP Error 500"):
        pull(store, hub, "hf:org/model")
    with pytest.raises(errors.NotFound, match="404"):
        pull(store, hub, "hf:org/none")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"siblings": 1}', b"\xff", b"[" * 100_000])
def test_list_that_is_none_is_refused(store: ModelStore, hub: FakeHub, body: bytes) -> None:
    hub.bodies["/api/models/org/model"] = body
    with pytest.raises(errors.PeerError, match="not the list of files"):
        pull(store, hub, "hf:org/model")


def test_endless_list_is_refused(store: ModelStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAX_DOCUMENT_BYTES", 1000)
    hub.bodies["/api/models/org/model"] = b" " * 1001
    with pytest.raises(errors.PeerError, match="too long, or comes too slowly"):
        pull(store, hub, "hf:org/model")


def test_list_that_comes_too_slowly_is_refused(store: ModelStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "DOCUMENT_SECONDS", -1.0)
    hub.bodies["/api/models/org/model"] = b" " * 10
    with pytest.raises(errors.PeerError, match="too long, or comes too slowly"):
        pull(store, hub, "hf:org/model")


def test_room_for_all_parts_is_checked_before_the_first(store: ModelStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repository("org/big", {f"big-{number:05}-of-00003.gguf": body for number, body in enumerate(PARTS, 1)})
    free = model_store.RESERVED_BYTES + sum(map(len, PARTS)) - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, free))
    with pytest.raises(errors.TooLarge, match="too full"):
        pull(store, hub, "hf:org/big")
    assert len(hub.asked) == 1


# --- registries ---------------------------------------------------------------------------------------------------------------


def test_model_of_ollama_is_its_layer_of_that_type(store: ModelStore, hub: FakeHub) -> None:
    layers = [{"mediaType": "application/vnd.ollama.image.license"}, {"mediaType": OLLAMA}]
    hub.add_manifest("library/tiny", "1b", layers, [b"license", BODY])
    hub.add_manifest("someone/tiny", "latest", layers, [b"license", OTHER])
    pulled = pull(store, hub, "ollama:tiny:1b")
    assert (pulled.name, pulled.digest, pulled.source) == ("tiny:1b", hashlib.sha256(BODY).hexdigest(), "ollama:tiny:1b")
    assert pull(store, hub, "ollama:someone/tiny").name == "someone/tiny"
    assert run(store, hub, "ollama:tiny:1b").unchanged


def test_projector_of_ollama_is_pulled_with_its_model(store: ModelStore, hub: FakeHub) -> None:
    hub.add_manifest("library/sees", "4b", [{"mediaType": OLLAMA}, {"mediaType": SEES}], [BODY, projector()])
    titled = [{"mediaType": "application/x", "annotations": {TITLE: name}} for name in ("mmproj-m.gguf", "m.gguf")]
    hub.add_manifest("team/m", "1", titled, [projector(2), BODY])
    assert pull(store, hub, "ollama:sees:4b").projector == hashlib.sha256(projector()).hexdigest()
    assert pull(store, hub, f"oci://{hub.host}/team/m:1").projector == hashlib.sha256(projector(2)).hexdigest()
    assert {model.digest for model in store.models()} == {hashlib.sha256(BODY).hexdigest()}


def test_model_of_a_registry_is_found_by_its_type_or_title(store: ModelStore, hub: FakeHub) -> None:
    hub.add_manifest("team/a", "1.0", [{"mediaType": "application/vnd.docker.ai.gguf.v3"}], [BODY])
    titled = [{"mediaType": "application/octet-stream", "annotations": {TITLE: name}} for name in ("../../x.gguf", "README.md")]
    digest = hub.add_manifest("team/b", "latest", titled, [OTHER, b"text"])
    assert pull(store, hub, f"oci://{hub.host}/team/a:1.0").name == "a:1.0"
    assert pull(store, hub, f"oci://{hub.host}/team/b@{digest}").name == "b"
    assert {path.name for path in store._root.rglob("*") if path.is_file()} == {
        "lock", "a:1.0.json", "b.json", *(hashlib.sha256(body).hexdigest() for body in (BODY, OTHER)),
    }  # fmt: skip


def test_parts_of_a_registry_are_ordered_by_their_titles(store: ModelStore, hub: FakeHub) -> None:
    titled = [{"mediaType": "application/x", "annotations": {TITLE: f"m-{number:05}-of-00003.gguf"}} for number in (3, 1, 2)]
    hub.add_manifest("m", "latest", titled, [PARTS[2], PARTS[0], PARTS[1]])
    pulled = pull(store, hub, f"oci://{hub.host}/m")
    assert (pulled.parts, store.file(pulled).read_bytes()) == (3, PARTS[0])


@pytest.mark.parametrize(
    ("layers", "kind", "why"),
    [
        ([], errors.NotFound, "has no GGUF file under this tag"),
        ([{"mediaType": "application/x"}], errors.NotFound, "has no GGUF file under this tag"),
        ([{"mediaType": OLLAMA, "digest": "sha256:../../../etc/passwd"}], errors.PeerError, "without a usable SHA-256"),
        ([{"mediaType": OLLAMA, "digest": "md5:12"}], errors.PeerError, "without a usable SHA-256"),
        ([{"mediaType": OLLAMA}, {"mediaType": OLLAMA}], errors.PeerError, "not one model and all its parts"),
        ([{"mediaType": OLLAMA, "size": "x"}], errors.PeerError, "not the list of files"),
    ],
)
def test_manifests_without_one_model_are_refused(
    store: ModelStore, hub: FakeHub, layers: list[dict[str, str]], kind: type[errors.AimeshError], why: str
) -> None:
    hub.add_manifest("m", "latest", layers, [BODY] * len(layers))
    with pytest.raises(kind, match=why):
        pull(store, hub, f"oci://{hub.host}/m")
    assert len(hub.asked) == 1


def test_manifest_with_another_digest_than_asked_for_is_refused(store: ModelStore, hub: FakeHub) -> None:
    digest = hub.add_manifest("m", "latest", [{"mediaType": OLLAMA}], [BODY])
    hub.bodies[f"/v2/m/manifests/{digest}"] += b" "
    with pytest.raises(errors.PeerError, match="does not have the digest"):
        pull(store, hub, f"oci://{hub.host}/m@{digest}")


@pytest.mark.parametrize(
    "target",
    ["oci://", "oci://host", "oci://host/", "oci://host/../x", "oci://host/A", "oci://h/a:..", "oci://u:p@h/a", "ollama:", "ollama:a:b:c"],
)
def test_references_that_are_no_model_of_a_registry_are_refused(store: ModelStore, hub: FakeHub, target: str) -> None:
    with pytest.raises(errors.BadRequest, match="not a model of a registry"):
        pull(store, hub, target)
    assert hub.asked == []


def guarded(hub: FakeHub, token: str = "granted") -> None:
    hub.add_manifest("team/m", "latest", [{"mediaType": OLLAMA}], [BODY])
    hub.tokens = {"/v2/": f"Bearer {token}"}
    hub.challenge = f'Bearer realm="{hub.url}/token",service="the registry",scope="repository:team/m:pull"'
    hub.bodies["/token"] = json.dumps({"token": token}).encode()


def test_registry_gets_a_token_from_where_its_challenge_says(store: ModelStore, hub: FakeHub, tmp_path: Path) -> None:
    guarded(hub)
    assert pull(store, hub, f"oci://{hub.host}/team/m").digest == hashlib.sha256(BODY).hexdigest()
    assert hub.paths()[1] == "/token?service=the+registry&scope=repository%3Ateam%2Fm%3Apull"
    assert "Authorization" not in hub.asked[1][1], "anonymous"
    hub.tokens["/token"] = "Basic bWU6cGFzcw=="
    file = token_file(tmp_path, "me:pass\n")
    assert pull(store, hub, f"oci://{hub.host}/team/m", name="again", token_file=file).name == "again"
    with pytest.raises(errors.NotAllowed, match="refused access"):
        pull(store, hub, f"oci://{hub.host}/team/m", name="anonymous")


def test_token_of_a_registry_is_dropped_where_it_redirects(store: ModelStore, hub: FakeHub) -> None:
    guarded(hub)
    with fake_hub.serving() as storage:
        path = f"/v2/team/m/blobs/sha256:{hashlib.sha256(BODY).hexdigest()}"
        storage.bodies[path] = BODY
        hub.elsewhere = {"/v2/team/m/blobs/": storage.url}
        assert pull(store, hub, f"oci://{hub.host}/team/m").size == len(BODY)
    assert [headers.get("Authorization") for _, headers in storage.asked] == [None]


def test_token_that_expires_midway_is_renewed_and_the_download_resumed(store: ModelStore, hub: FakeHub) -> None:
    guarded(hub)
    path = f"/v2/team/m/blobs/sha256:{hashlib.sha256(BODY).hexdigest()}"
    hub.cuts[path] = 90_000
    hub.after_cut = lambda: guarded(hub, "second")
    assert pull(store, hub, f"oci://{hub.host}/team/m").digest == hashlib.sha256(BODY).hexdigest()
    assert [headers.get("Range") for where, headers in hub.asked if where == path] == [None, "bytes=90000-", "bytes=90000-"]


def test_server_that_refuses_every_continuation_is_given_up(store: ModelStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_program, "MAX_PLANS", 3)
    hub.add_repository("org/model", {"model.gguf": BODY})
    path = f"/org/model/resolve/{'a' * 40}/model.gguf"

    def cut_again() -> None:
        hub.statuses[path] = [403]
        hub.cuts[path] = 100_000 + len(hub.asked)

    hub.cuts[path] = 90_000
    hub.after_cut = cut_again
    with pytest.raises(errors.NotAllowed, match="refused access"):
        pull(store, hub, "hf:org/model")
    assert hub.paths().count("/api/models/org/model?blobs=true") == 3


@pytest.mark.parametrize(
    ("challenge", "why", "kind"),
    [
        ('Bearer realm="http://tokens.example.org/"', "without TLS", errors.BadRequest),
        ('Bearer realm="file:///etc/passwd"', "not the start of a URL", errors.BadRequest),
        ("Basic realm=x", "refused access", errors.NotAllowed),
        ("Bearer", "refused access", errors.NotAllowed),
    ],
)
def test_challenges_that_lead_nowhere_are_refused(
    store: ModelStore, hub: FakeHub, challenge: str, why: str, kind: type[errors.AimeshError]
) -> None:
    guarded(hub)
    hub.challenge = challenge
    with pytest.raises(kind, match=why):
        pull(store, hub, f"oci://{hub.host}/team/m")


def test_server_behind_a_redirect_cannot_ask_for_the_credentials(store: ModelStore, hub: FakeHub, tmp_path: Path) -> None:
    guarded(hub)
    hub.tokens = {}
    with fake_hub.serving() as thief:
        thief.tokens = {"/v2/": "Bearer none"}
        thief.challenge = f'Bearer realm="{thief.url}/token",service="x"'
        thief.bodies["/token"] = b'{"token": "none"}'
        hub.elsewhere = {"/v2/": thief.url}
        with pytest.raises(errors.NotAllowed, match="refused access"):
            pull(store, hub, f"oci://{hub.host}/team/m", token_file=token_file(tmp_path, "me:pass"))
    assert [(path, headers.get("Authorization")) for path, headers in thief.asked] == [("/v2/team/m/manifests/latest", None)]


@pytest.mark.parametrize("answer", [b'{"token": "a\\r\\nX-Evil: 1"}', b"{}", b"no"])
def test_unusable_tokens_are_refused(store: ModelStore, hub: FakeHub, answer: bytes) -> None:
    guarded(hub)
    hub.bodies["/token"] = answer
    with pytest.raises(errors.PeerError, match=r"without a usable token|not the list of files"):
        pull(store, hub, f"oci://{hub.host}/team/m")


@pytest.mark.parametrize("name", ["a/../../b", "a/..", "a/./b", "a//b", "a/.b", "a..b", "../b", "a/_b", "a-/b"])
def test_a_name_that_leads_elsewhere_in_a_registry_is_refused(store: ModelStore, hub: FakeHub, name: str) -> None:
    for target in (f"ollama:{name}", f"ollama:{name}:1b", f"oci://{hub.host}/{name}"):
        with pytest.raises(errors.BadRequest, match="is not a model of a registry"):
            pull(store, hub, target, name="other")
    assert hub.asked == []


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "LOCALHOST.", "127.0.0.2", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]", "127.1", "2130706433"]
)
def test_a_pull_is_sent_to_this_machine_only_if_it_began_here(
    store: ModelStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    with fake_hub.serving() as local:
        here = f"http://{host}:{local.host.rpartition(':')[2]}"
        local.bodies["/m.gguf"] = BODY
        monkeypatch.setenv("http_proxy", hub.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        # The proxy answers for the server.
        hub.elsewhere = {"http://models.example.org": f"{here}/?"}
        with pytest.raises(errors.BadRequest, match="sends us to this machine"):
            pull(store, hub, "http://models.example.org/m.gguf", insecure=True)
        guarded(hub)
        hub.tokens = {"http://registry.example.org/v2/": "Bearer none"}
        hub.challenge = f'Bearer realm="{here}/token",service="x"'
        with pytest.raises(errors.BadRequest, match="sends us to this machine"):
            pull(store, hub, "oci://registry.example.org/team/m", insecure=True)
        assert local.asked == []
        hub.elsewhere = {"/m.gguf": local.url}
        assert pull(store, hub, f"{hub.url}/m.gguf").size == len(BODY), "it began here"


def test_plain_http_to_a_registry_or_mirror_is_refused(store: ModelStore, hub: FakeHub) -> None:
    hub.url = "http://hub.example.org"
    for target in ("hf:org/model", "ollama:tiny"):
        with pytest.raises(errors.BadRequest, match=r"hub\.example\.org would be reached without TLS"):
            pull(store, hub, target)


def test_urls_of_a_mirrored_host_come_from_the_mirror(store: ModelStore, hub: FakeHub) -> None:
    hub.bodies["/m/models/some-model.gguf"] = BODY
    pulled = pull(store, hub, "https://mirrored.example/models/some-model.gguf")
    assert (pulled.name, pulled.source) == ("some-model", "https://mirrored.example/models/some-model.gguf")


def test_proxy_of_the_environment_is_used(store: ModelStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", hub.url)
    hub.bodies["http://models.example.org/some-model.gguf"] = BODY
    assert pull(store, hub, "http://models.example.org/some-model.gguf", insecure=True).size == len(BODY)
    monkeypatch.setenv("no_proxy", "models.invalid")
    monkeypatch.setattr(download, "MAX_FAILURES", 0)
    with pytest.raises(errors.Unavailable, match="could not be downloaded"):
        pull(store, hub, "http://models.invalid/some-model.gguf", insecure=True, name="other")
    assert len(hub.asked) == 1


# --- running pulls ------------------------------------------------------------------------------------------------------------


def test_running_pulls_are_seen_by_other_processes_until_they_end(store: ModelStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repository("org/model", {"model.gguf": BODY})
    seen: list[ModelPull] = []
    real = download.PartialFile.report

    def report(self: download.PartialFile, step: str) -> None:
        real(self, step)
        seen.extend(ModelStore(store._root).pulls())

    monkeypatch.setattr(download.PartialFile, "report", report)
    pull(store, hub, "hf:org/model")
    assert (seen[-1].name, seen[-1].done_bytes, seen[-1].total_bytes) == ("model", len(BODY), len(BODY))
    assert store.pulls() == ()


def test_files_that_cannot_be_opened_are_no_pulls(store: ModelStore) -> None:
    """For example, files of `sudo aicli models pull`. The worker checks every two seconds, and an error would end it."""
    store.ensure_folders()
    (store._root / "partial/x.progress").write_text("{}")
    (store._root / "partial/x.lock").mkdir()
    assert store.pulls() == ()


def test_interrupted_pull_is_not_running(store: ModelStore, hub: FakeHub) -> None:
    hub.add_repository("org/model", {"model.gguf": BODY})
    path = f"/org/model/resolve/{'a' * 40}/model.gguf"
    hub.cuts[path] = 50_000
    hub.after_cut = lambda: hub.statuses.update({path: [404]})
    with pytest.raises(errors.NotFound, match="there is no"):
        pull(store, hub, "hf:org/model")
    assert list((store._root / "partial").glob("*.progress"))
    assert store.pulls() == ()
    (store._root / "partial/x.progress").write_text("{")
    assert store.pulls() == ()
    store.prune()
    assert list((store._root / "partial").iterdir()) == []


def served(store: ModelStore, *pulls: str) -> list[str]:
    return [entry.name for entry in model_discovery.in_store(store, Defaults(), pulls)]


def test_a_worker_serves_what_its_settings_pulled_only_while_they_name_it(store: ModelStore, hub: FakeHub) -> None:
    hub.add_repository("org/old", {"old-Q8_0.gguf": BODY})
    hub.add_repository("org/new", {"new-Q8_0.gguf": OTHER})
    run(store, hub, "hf:org/old", by_settings=True)
    assert served(store, "hf:org/old") == ["old-Q8_0"]
    assert served(store, "hf:org/new") == [], "the pool's model has changed"
    run(store, hub, "hf:org/new", by_settings=True)
    assert served(store, "hf:org/new") == ["new-Q8_0"]
    assert served(store) == []
    # Workers may share the store, and call a model differently.
    assert run(store, hub, "hf:org/old:Q8_0", by_settings=True).unchanged
    assert served(store, "hf:org/old") == served(store, "hf:org/old:Q8_0") == ["old-Q8_0"]


def test_a_model_that_a_person_pulled_is_served_whatever_the_settings_name(store: ModelStore, hub: FakeHub) -> None:
    hub.add_repository("org/model", {"m-Q8_0.gguf": BODY})
    run(store, hub, "hf:org/model", by_settings=True)
    assert served(store) == []
    assert run(store, hub, "hf:org/model").unchanged
    assert served(store) == ["m-Q8_0"]
    run(store, hub, "hf:org/model", by_settings=True)
    assert served(store) == ["m-Q8_0"]
    # The settings replace it by another model of that name.
    hub.add_repository("org/other", {"m-Q8_0.gguf": OTHER})
    run(store, hub, "hf:org/other", by_settings=True)
    assert served(store, "hf:org/other") == ["m-Q8_0"]
    assert served(store) == []


def test_an_update_of_the_settings_model_is_still_theirs(store: ModelStore, hub: FakeHub) -> None:
    hub.add_repository("org/model", {"m-Q8_0.gguf": BODY})
    run(store, hub, "hf:org/model", by_settings=True)
    hub.add_repository("org/model", {"m-Q8_0.gguf": OTHER})
    assert not run(store, hub, "hf:org/model", by_settings=True).unchanged
    assert served(store) == []
    assert served(store, "hf:org/model") == ["m-Q8_0"]
