"""Hashes of a prompt's prefixes, and which workers have read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.scheduling import prefix_affinity
from services.gateway.scheduling.prefix_affinity import PrefixAffinity
from shared.api import generation
from shared.api.generation import BLOCK_BYTES, ChatMessage, Tool
from shared.types import ModelName
from tests.services.gateway.fakes import node_id

M = ModelName("m")
SYSTEM = ChatMessage("system", "You are the assistant of a library. " * 40)
SINCE = {node_id(number): 0.0 for number in range(10)}


def test_the_next_turn_of_a_conversation_shares_its_prefix() -> None:
    first = (SYSTEM, ChatMessage("user", "hello " * 100))
    then = (*first, ChatMessage("assistant", "hi " * 100), ChatMessage("user", "and now?"))
    shorter, longer = generation.hash_prefixes(first, "salt"), generation.hash_prefixes(then, "salt")
    assert longer[: len(shorter)] == shorter
    assert len(longer) > len(shorter)


def test_an_extended_text_keeps_its_prefixes() -> None:
    short, long = (generation.hash_prefixes((ChatMessage("user", "word " * count),), "salt") for count in (200, 300))
    assert long[: len(short)] == short


def test_two_tenants_share_no_prefix_hashes() -> None:
    assert not set(generation.hash_prefixes((SYSTEM,), "one")) & set(generation.hash_prefixes((SYSTEM,), "two"))


def test_roles_and_tools_are_part_of_the_prefix() -> None:
    text = "word " * 200
    tools = (Tool("search"),)
    names = [
        generation.hash_prefixes((ChatMessage(role, text),), "salt", with_tools)
        for role in ("user", "system")
        for with_tools in ((), tools)
    ]
    assert len({name for each in names for name in each}) == sum(map(len, names))


def test_a_prompt_shorter_than_a_block_has_no_prefixes() -> None:
    assert generation.hash_prefixes((ChatMessage("user", "hi"),), "salt") == ()


def test_lone_surrogates_are_hashed_too() -> None:
    assert generation.hash_prefixes((ChatMessage("user", "\ud800" * 200),), "salt")


@given(st.integers(1, 400), st.integers(1, 400))
def test_a_long_prompt_has_few_prefixes_and_matches_its_last_turn(blocks: int, more: int) -> None:
    text = "".join(f"{number:07d} " for number in range((blocks + more) * BLOCK_BYTES // 8))
    last, now = (generation.hash_prefixes((ChatMessage("user", text[: count * BLOCK_BYTES]),), "salt") for count in (blocks, blocks + more))
    assert 0 < len(last) <= generation.MAX_BLOCKS
    assert len(now) <= generation.MAX_BLOCKS
    readers = PrefixAffinity()
    readers.record(M, last, node_id(1), now=0)
    share = readers.shares(M, now, SINCE, now=1).get(node_id(1), 0.0)
    # The common part is rounded down to a hashed prefix.
    assert share == pytest.approx(
        blocks / (blocks + more), abs=2.5 / generation.MAX_BLOCKS if blocks + more > generation.MAX_BLOCKS else 1 / len(now)
    )


def test_the_longest_prefix_counts_for_several_workers() -> None:
    readers = PrefixAffinity()
    readers.record(M, (b"1", b"2", b"3"), node_id(1), now=0)
    readers.record(M, (b"1", b"x"), node_id(2), now=1)
    assert readers.shares(M, (b"1", b"2", b"y", b"z"), SINCE, now=2) == {node_id(1): 0.5, node_id(2): 0.25}
    assert readers.shares(ModelName("n"), (b"1",), SINCE, now=2) == {}


def test_old_prefixes_and_those_of_ended_processes_do_not_count() -> None:
    readers = PrefixAffinity()
    readers.record(M, (b"1",), node_id(1), now=100)
    assert readers.shares(M, (b"1",), SINCE, now=100 + prefix_affinity.LIVES_SECONDS)
    assert not readers.shares(M, (b"1",), SINCE, now=101 + prefix_affinity.LIVES_SECONDS)
    assert not readers.shares(M, (b"1",), {node_id(1): 150.0}, now=160)
    assert not readers.shares(M, (b"1",), {node_id(2): 0.0}, now=160)


def test_the_number_of_prefixes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_affinity, "MAX_PREFIXES", 100)
    readers = PrefixAffinity()
    for number in range(300):
        readers.record(M, (b"shared", str(number).encode()), node_id(number % 10), now=number)
    assert len(readers._read) == 100
    assert len(readers.shares(M, (b"shared",), SINCE, now=300)) == prefix_affinity.MAX_READERS
    assert not readers.shares(M, (b"1",), SINCE, now=300)
