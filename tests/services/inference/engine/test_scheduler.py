from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine import sequence
from services.inference.engine.sampling import Parameters
from services.inference.engine.scheduler import Feed, Scheduler

PARAMETERS = Parameters(temperature=0, top_p=1, top_k=0, seed=0)


def make(identity: int, prompt: int, answer: int = 3) -> sequence.Sequence:
    made = sequence.start(identity, [identity] * prompt, PARAMETERS, context_tokens=4096)
    made.limit = answer
    return made


def step(scheduler: Scheduler) -> list[tuple[int, int, int]]:
    """One step of a model that answers with token 9; (id, start, count) of what it was fed."""
    scheduler.admit()
    feeds = scheduler.plan()
    scheduler.fed(feeds)
    for feed in feeds:
        if feed.sample and feed.sequence.take(9, b"x").finish is not None:
            scheduler.remove(feed.slot)
    return [shape(feed) for feed in feeds]


def shape(feed: Feed) -> tuple[int, int, int]:
    return (feed.sequence.id, feed.start, len(feed.tokens))


def test_a_long_prompt_and_a_running_answer_take_turns() -> None:
    scheduler = Scheduler(slots=2, chunk_tokens=4)
    scheduler.submit(make(1, prompt=2, answer=5))
    assert step(scheduler) == [(1, 0, 2)]
    scheduler.submit(make(2, prompt=10))
    assert [step(scheduler) for _ in range(6)] == [
        [(1, 2, 1)],
        [(2, 0, 4)],
        [(1, 3, 1)],
        [(2, 4, 4)],
        [(1, 4, 1)],
        [(2, 8, 2)],
    ]


def test_all_answers_go_forward_in_one_step() -> None:
    scheduler = Scheduler(slots=3, chunk_tokens=4)
    for identity in (1, 2, 3):
        scheduler.submit(make(identity, prompt=1, answer=9))
    fed = [step(scheduler) for _ in range(6)]
    assert [[identity for identity, _, _ in feeds] for feeds in fed] == [[1], [1], [2], [1, 2], [3], [1, 2, 3]]


def test_who_came_first_gets_the_free_slot() -> None:
    scheduler = Scheduler(slots=1, chunk_tokens=4)
    for identity in (1, 2, 3):
        scheduler.submit(make(identity, prompt=1, answer=1))
    assert [step(scheduler) for _ in range(4)] == [[(1, 0, 1)], [(2, 0, 1)], [(3, 0, 1)], []]
    assert scheduler.idle


def test_cancel_frees_the_slot_of_a_running_one_for_the_next() -> None:
    scheduler = Scheduler(slots=1, chunk_tokens=4)
    scheduler.submit(make(1, prompt=20))
    scheduler.submit(make(2, prompt=1))
    step(scheduler)
    assert scheduler.cancel(1) == 0
    assert step(scheduler) == [(2, 0, 1)]


def test_cancel_of_a_waiting_one_frees_no_slot() -> None:
    scheduler = Scheduler(slots=1, chunk_tokens=4)
    scheduler.submit(make(1, prompt=1, answer=1))
    scheduler.submit(make(2, prompt=1))
    step(scheduler)
    scheduler.submit(make(3, prompt=1, answer=1))
    assert scheduler.cancel(2) is None
    assert step(scheduler) == [(3, 0, 1)]


def test_cancel_of_one_that_is_over_does_nothing() -> None:
    assert Scheduler(slots=1, chunk_tokens=4).cancel(5) is None


@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 6), st.integers(0, 12)), min_size=1, max_size=8),
)
def test_each_one_is_computed_in_the_same_pieces_alone_and_in_company(
    slots: int, chunk_tokens: int, arrivals: list[tuple[int, int, int]]
) -> None:
    """The shape of what is computed must not depend on the others, or the same seed would not give the same tokens."""
    scheduler = Scheduler(slots, chunk_tokens)
    pieces: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for now in range(1000):
        for identity, (prompt, answer, at) in enumerate(arrivals):
            if at == now:
                scheduler.submit(make(identity, prompt, answer))
        fed = step(scheduler)
        assert len({identity for identity, _, _ in fed}) == len(fed) <= slots
        for identity, start, count in fed:
            pieces[identity].append((start, count))
    assert scheduler.idle
    for identity, (prompt, answer, _) in enumerate(arrivals):
        chunks = [(start, min(chunk_tokens, prompt - start)) for start in range(0, prompt, chunk_tokens)]
        assert pieces[identity] == chunks + [(prompt + said, 1) for said in range(answer - 1)]
