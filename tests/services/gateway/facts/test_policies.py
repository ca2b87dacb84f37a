"""How the levels of policies are combined."""

import ast
import functools
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.facts import config_snapshot, placements, policies
from services.gateway.facts.config_snapshot import StoredDocument
from services.gateway.facts.placements import ANYWHERE, Barrier, Placement
from services.gateway.facts.policies import Policies
from shared import errors
from shared.api.ledger import ModelPrice
from shared.config_documents import ConfigKind, Flex, Machines, PolicyDocument, PriceCeiling, StoredPrompts
from shared.protocol.directory import ModelOffer
from shared.types import KeyId, MicroCredits, ModelName, TenantId
from tests.services.gateway.fakes import FakeDirectory, announcement

TENANT, OTHER = TenantId(UUID(int=1)), TenantId(UUID(int=2))
KEY = KeyId(UUID(int=9))
OWN = f"organization:{TENANT}"


def document(**rules: object) -> PolicyDocument:
    return msgspec.convert(rules, PolicyDocument)


def price(input_credits: float, output_credits: float) -> ModelPrice:
    return ModelPrice(ModelName("m"), MicroCredits(round(input_credits * 10**6)), MicroCredits(round(output_credits * 10**6)))


def external(**documents: PolicyDocument) -> tuple[str, ...]:
    return Policies(documents).find(TENANT, KEY).placement.external


def test_a_provider_must_be_allowed_twice() -> None:
    listed = document(external=["acme", "other"])
    assert external() == ()
    assert external(mesh=listed) == external(default=listed) == ()
    assert external(mesh=listed, default=document(machines="group")) == (), "a missing list is an empty one"
    assert external(mesh=listed, default=document(external=["acme", "more"])) == ("acme",)
    assert external(mesh=document(external=["*"]), default=listed) == ("acme", "other")
    assert external(mesh=document(external=["*"]), default=document(external=["*"])) == ("*",)


def test_an_organizations_policy_takes_the_place_of_the_default_one() -> None:
    listed = document(external=["acme"])
    assert external(mesh=listed, **{OWN: listed}) == ("acme",)
    assert external(mesh=listed, default=listed, **{OWN: document(machines="group")}) == ()
    assert external(mesh=listed, default=listed, **{f"organization:{OTHER}": document(external=[])}) == ("acme",)


def test_a_key_and_a_request_can_only_forbid() -> None:
    found = Policies({"mesh": document(external=["acme"]), "default": document(external=["acme"]), f"key:{KEY}": document(external=["*"])})
    assert found.find(TENANT, KEY).placement.external == ("acme",)
    assert found.find(TENANT, KEY, forbids_external=True).placement.external == ()
    assert found.find(TENANT, KEY).placement.external == found.find(TENANT).placement.external == ("acme",), "others are not affected"
    only_key = Policies({f"key:{KEY}": document(external=["acme"])})
    assert only_key.find(TENANT, KEY).placement.external == ()


def test_the_narrowest_machines_the_lowest_price_and_the_first_prohibition_apply() -> None:
    found = Policies(
        {
            "mesh": document(machines="trusted", max_price={"input": "2"}),
            OWN: document(machines="group", max_price={"input": "0.5", "output": "3"}, direct_models=False),
            f"key:{KEY}": document(machines="own", max_price={"output": 4}, direct_models=True, show_targets=False),
        }
    ).find(TENANT, KEY)
    assert (found.machines.value, found.machines.level) == (Machines.OWN, "key")
    assert (found.max_input.value, found.max_input.level) == (500_000, "organization")
    assert (found.max_output.value, found.max_output.level) == (3_000_000, "organization")
    assert (found.direct_models.value, found.direct_models.level) == (False, "organization")
    assert (found.show_targets.value, found.show_targets.level) == (False, "key")
    lower = document(machines="trusted", max_price={"input": 1, "output": 1})
    higher = document(machines="group", max_price={"input": 2, "output": 2})
    for levels in ([lower, higher], [higher, lower]):
        one = policies.combine([(str(number), level) for number, level in enumerate(levels)])
        assert (one.machines.value, one.max_input.value, one.max_output.value) == (Machines.TRUSTED, 10**6, 10**6)
    assert found.allows_price(price(0.5, 3))
    assert not found.allows_price(price(0.500001, 3))
    assert not found.allows_price(price(0.5, 3.000001))
    assert policies.Policy().allows_price(price(10**6, 10**6))


def test_a_name_must_match_a_pattern_of_each_level() -> None:
    found = Policies(
        {"mesh": document(models=["assistant", "embed-*"]), "default": document(models=["embed-*", "more"], targets=["smol*"])}
    )
    policy = found.find(TENANT)
    assert [name for name in ("assistant", "embed-a", "embed-", "more", "x-embed-a") if policy.allows_name(name)] == ["embed-a", "embed-"]
    assert (policy.allows_target("smollm2"), policy.allows_target("llama")) == (True, False)
    assert Policies({"mesh": document(models=[])}).find(TENANT).allows_name("assistant") is False


@pytest.mark.parametrize(
    ("documents", "kept", "level"),
    [
        ({}, "never", "built-in"),
        ({"default": "24h", f"organization:{TENANT}": "24h"}, "never", "built-in"),
        ({"mesh": "24h"}, "24h", "mesh"),
        ({"mesh": "24h", f"organization:{TENANT}": "24h"}, "24h", "mesh"),
        ({"mesh": "24h", f"organization:{TENANT}": "never"}, "never", "organization"),
    ],
)
def test_only_the_mesh_lets_prompts_be_stored(documents: dict[str, str], kept: str, level: str) -> None:
    found = Policies({name: document(stored_prompts=words) for name, words in documents.items()}).find(TENANT).stored_prompts
    assert (found.value, found.level) == (kept, level)


_names = st.lists(st.sampled_from(["a", "b", "a*", "*"]), max_size=3, unique=True)
_documents = st.builds(
    PolicyDocument,
    external=st.none() | st.lists(st.sampled_from(["acme", "other", "*"]), max_size=3, unique=True).map(tuple),
    machines=st.none() | st.sampled_from(Machines),
    models=st.none() | _names.map(tuple),
    targets=st.none() | _names.map(tuple),
    direct_models=st.none() | st.booleans(),
    show_targets=st.none() | st.booleans(),
    store_items=st.none() | st.booleans(),
    stored_prompts=st.none() | st.sampled_from(StoredPrompts),
    flex=st.none() | st.sampled_from(Flex),
    max_price=st.none() | st.builds(PriceCeiling, input=st.none() | st.just("0.5"), output=st.none() | st.just("1")),
)


@given(st.lists(_documents, max_size=4), _documents)
def test_a_further_level_never_allows_more(earlier: list[PolicyDocument], further: PolicyDocument) -> None:
    levels = [(str(number), one) for number, one in enumerate(earlier)]
    before, after = policies.combine(levels), policies.combine([*levels, ("further", further)])
    for provider in ("acme", "other", "new", ""):
        for owner in ("", str(TENANT), str(OTHER)):
            for labels in ({}, {"trusted": "yes"}):
                worker = announcement(1, "a", owner=owner, labels=labels)
                offer = ModelOffer(ModelName("a"), 100, provider=provider)
                if placements.barrier(TENANT, before.placement, worker, offer) is not None:
                    assert placements.barrier(TENANT, after.placement, worker, offer) is not None
    for name in ("a", "ab", "b", "c"):
        assert before.allows_name(name) or not after.allows_name(name)
        assert before.allows_target(name) or not after.allows_target(name)
    for one in (price(0.4, 0.9), price(0.6, 0.9), price(0.4, 1.1)):
        assert before.allows_price(one) or not after.allows_price(one)
    assert before.direct_models.value or not after.direct_models.value
    assert before.show_targets.value or not after.show_targets.value
    assert before.store_items.value or not after.store_items.value
    assert before.stored_prompts.value is StoredPrompts.DAY or after.stored_prompts.value is StoredPrompts.NEVER
    assert before.flex.value or not after.flex.value
    assert before.live.value or not after.live.value


@pytest.mark.parametrize(
    ("allowed", "provider", "owner", "found"),
    [
        ((), "", "", None),
        ((), "acme", "", Barrier.PROVIDER),
        ((), "acme", str(TENANT), Barrier.PROVIDER),
        (("acme",), "acme", "", None),
        (("other",), "acme", "", Barrier.PROVIDER),
        (("*",), "acme", "", None),
        (("*",), "acme", str(OTHER), Barrier.MACHINES),
    ],
)
def test_a_provider_is_compared_also_on_own_machines(allowed: tuple[str, ...], provider: str, owner: str, found: Barrier | None) -> None:
    placement = Placement(Machines.INTERNAL, allowed)
    offer = ModelOffer(ModelName("m"), 100, provider=provider)
    assert placements.barrier(TENANT, placement, announcement(1, "m", owner=owner), offer) is found


def test_a_worker_is_listed_with_the_models_that_it_may_serve() -> None:
    directory = FakeDirectory()
    offers = ModelOffer(ModelName("a"), 100), ModelOffer(ModelName("b"), 100, provider="acme"), ModelOffer(ModelName("c"), 100)
    directory.apply_announcement(msgspec.structs.replace(announcement(1), models=offers), "nats")
    directory.worker(2, "b", provider="acme")
    policy = policies.combine([("mesh", document(external=[], targets=["a", "b"]))])
    (worker,) = policies.open_to(TENANT, policy, directory.entries())
    assert [offer.name for offer in worker.announcement.models] == ["a"]
    assert policies.open_to(TENANT, policies.Policy(), directory.entries()) == directory.entries()


def test_what_was_combined_is_kept_for_each_policy_and_not_for_each_caller() -> None:
    found = Policies({OWN: document(machines="own")})
    for number in range(100):
        found.find(TenantId(UUID(int=1000 + number)), KeyId(UUID(int=number)))
    assert found.find(TENANT) is not found.find(OTHER)
    assert len(found._known) == 2


# --- no bypass ------------------------------------------------------------------------------------------------------------

GATEWAY = Path("services/gateway")


@functools.cache
def _nodes() -> dict[str, list[ast.AST]]:
    """Return the AST nodes of each module of the gateway."""
    return {str(path.relative_to(GATEWAY)): list(ast.walk(ast.parse(path.read_text(encoding="utf-8")))) for path in GATEWAY.rglob("*.py")}


def _callers(*names: str) -> set[str]:
    """Return the modules of the gateway that call one of these, as `name(` or `….name(`."""
    return {
        module
        for module, nodes in _nodes().items()
        if any(isinstance(node, ast.Call) and ast.unparse(node.func).endswith(names) for node in nodes)
    }


def test_all_requests_pass_the_admission_which_reads_the_policy() -> None:
    assert _callers("workers.generate") == {"requests/runs.py"}
    assert _callers("WorkerRequirements") == {"requests/request_admission.py", "scheduling/peer_queues.py"}
    assert _readers("self._admission.admit") == {"requests/runs.py"}
    for method in ("inference.process_prompt", "embedding.embed", "embedding.rank", "inference.moderate"):
        assert _readers(method) == {"requests/generation.py"}, f"only a kind of answers has {method}"
    assert _readers("kind.method") == {"requests/workers.py"}, "only one module calls it"


def _readers(method: str) -> set[str]:
    """Return the modules of the gateway that use a method for more than its name."""
    found = set()
    for module, nodes in _nodes().items():
        attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
        names = {node.value for node in attributes if node.attr == "name"}
        used = (node for node in attributes if node.attr == method.rpartition(".")[2] and node not in names)
        if any(ast.unparse(node) == method for node in used):
            found.add(module)
    return found


def test_anywhere_is_no_default_of_requests() -> None:
    source = (GATEWAY / "requests/request_admission.py").read_text(encoding="utf-8")
    assert "ANYWHERE" not in source
    assert ANYWHERE.external == ("*",)


def test_the_revision_of_a_tenant_is_that_of_the_last_change_even_if_it_removed_a_policy() -> None:
    def revision(**revisions: int) -> int:
        names = {"mesh": "mesh", "default": "default", "own": f"organization:{TENANT}", "other": f"organization:{OTHER}"}
        stored = {
            (ConfigKind.POLICY, names[level]): StoredDocument(1, revision, "applied", PolicyDocument() if revision < 8 else None)
            for level, revision in revisions.items()
        }
        return config_snapshot.build(9, stored).policies.revision_of(TENANT)

    assert revision() == 0
    assert revision(mesh=3, default=1) == 3
    assert revision(mesh=3, default=4, other=7) == 4
    assert revision(mesh=3, default=4, own=6) == 6
    assert revision(mesh=3, default=4, own=8) == 8


@pytest.mark.parametrize(
    ("levels", "plan", "wanted", "expected"),
    [
        ((), "allowed", None, False), ((), "allowed", True, True), ((), "allowed", False, False),
        (("only",), "allowed", None, True), (("only",), "allowed", True, True), (("only",), "allowed", False, "only flex"),
        (("never",), "allowed", None, False), (("never",), "allowed", True, "not allowed"), (("never",), "allowed", False, False),
        (("allowed", "only"), "allowed", None, True), (("only", "allowed"), "allowed", None, True),
        ((), "only", None, True), ((), "never", True, "level: plan"), ((), "only", False, "level: plan"),
        (("never",), "only", None, "not allowed"), (("only", "never"), "allowed", None, "not allowed"),
    ],
)  # fmt: skip
def test_each_level_may_forbid_flex_or_live_requests(levels: tuple[str, ...], plan: str, wanted: bool | None, expected: bool | str) -> None:
    policy = policies.combine([(str(number), document(flex=Flex(level))) for number, level in enumerate(levels)])
    if isinstance(expected, bool):
        assert policy.runs_as_batch(wanted, Flex(plan)) is expected
    else:
        with pytest.raises(errors.PolicyForbidden, match=expected):
            policy.runs_as_batch(wanted, Flex(plan))
