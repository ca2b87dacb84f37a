"""Which name a worker's model gets beside those of others."""

from datetime import UTC, datetime, timedelta
from itertools import permutations

from features.front.contract import Build
from features.front.rules import same_names
from features.front.rules.same_names import Offered, Offerer
from shared.types import ModelName, NodeId

START = datetime(2026, 11, 30, tzinfo=UTC)
QWEN = ModelName("qwen3:8b")


def worker(name: str, minutes: int = 0, owner: str = "") -> Offerer:
    return Offerer(node=NodeId(name), owner=owner, started_at=START + timedelta(minutes=minutes))


def build(digest: str = "", quantization: str = "", name: str = QWEN) -> Build:
    return Build(ModelName(name), digest, quantization)


def offered(by: Offerer, what: Build, *, is_upstream: bool = True) -> Offered:
    return Offered(build=what, by=by, is_upstream=is_upstream)


def name_of(what: Build, by: Offerer, *others: Offered) -> str:
    (found,) = same_names.names_of([what], "box", by, others)
    return found


OLD, NEW = worker("old"), worker("new", 5)


def test_equal_digests_are_one_name() -> None:
    assert name_of(build("1"), NEW, offered(OLD, build("1"))) == QWEN
    assert name_of(build("1"), NEW, offered(OLD, build("1", name="attic/qwen3:8b"))) == "attic/qwen3:8b"


def test_the_later_worker_of_another_file_names_its_machine() -> None:
    assert name_of(build("2"), NEW, offered(OLD, build("1"))) == "box/qwen3:8b"
    assert name_of(build("1"), OLD, offered(NEW, build("2"))) == QWEN
    assert name_of(build("2"), OLD, offered(NEW, build("1"), is_upstream=False)) == "box/qwen3:8b"
    assert name_of(build("2"), NEW, offered(NEW, build("1")), offered(OLD, build("1", name="llama3"))) == QWEN


def test_a_known_digest_is_not_that_of_an_unknown_one() -> None:
    assert name_of(build("1", "Q4_K_M"), NEW, offered(OLD, build("", "Q4_K_M"))) == "box/qwen3:8b"
    assert name_of(build("", "Q4_K_M"), NEW, offered(OLD, build("1", "Q4_K_M"))) == "box/qwen3:8b"


def test_unknown_digests_are_one_name_for_one_owner_and_quantization() -> None:
    ann, ben = worker("a", owner="ann"), worker("b", owner="ben")
    new = worker("new", 5, owner="ann")
    assert name_of(build("", "Q4_K_M"), new, offered(ann, build("", "Q4_K_M"))) == QWEN
    assert name_of(build("", "Q8_0"), new, offered(ann, build("", "Q4_K_M"))) == "box/qwen3:8b"
    assert name_of(build("", "Q4_K_M"), new, offered(ben, build("", "Q4_K_M"))) == "box/qwen3:8b"
    # A vendor before a name is no machine.
    assert name_of(build("", "Q4_K_M"), new, offered(ann, build("", "Q4_K_M", name="vendor/qwen3:8b"))) == QWEN


def test_all_workers_that_start_at_once_settle_on_one_name_a_file() -> None:
    """In whatever order they ask again, and while they all have the plain name at first."""
    workers = {
        name: (worker(name, minutes), digest) for name, minutes, digest in (("a", 0, "1"), ("b", 1, "2"), ("c", 2, "2"), ("d", 3, "1"))
    }
    for order in permutations(workers):
        now = {name: str(QWEN) for name in workers}
        for _ in range(3):
            for name in order:
                by, digest = workers[name]
                others = [offered(workers[each][0], build(workers[each][1], name=now[each])) for each in workers]
                (found,) = same_names.names_of([build(digest)], name, by, others)
                now[name] = found if found != QWEN else now[name]
        assert now == {"a": QWEN, "b": "b/qwen3:8b", "c": "b/qwen3:8b", "d": QWEN}
