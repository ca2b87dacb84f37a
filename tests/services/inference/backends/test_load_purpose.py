"""What a model is loaded for: it is loaded again if that changes, and remembers it."""

import asyncio

import pytest

from services.inference.models import load_plan
from services.inference.models.catalog import ModelProgram
from shared import errors
from shared.api.inference import ModelState
from shared.protocol.agent_requirements import CONTEXT_TOKENS
from shared.types import LoadPurpose, ModelName
from tests.services.inference.backends.test_model_cache import Site, generate, site
from tests.services.inference.standins import until

A, B = ModelName("a"), ModelName("b")
__all__ = ["site"]


async def test_model_is_loaded_again_for_agents(site: Site) -> None:
    entry = site.entry(A, context=131_072, memory_bytes=None, slots=None)
    async with site.backend(entry, budget=2**40) as backend:
        status = await backend.load(A, pin=True)
        assert (status.can_suit_agents, site.engines[0].load.context_tokens) == (True, load_plan.CPU_CONTEXT_TOKENS)
        status = await backend.load(A, purpose=LoadPurpose.AGENTS)
        load = site.engines[1].load
        assert (load.context_tokens, load.embedding_tokens) == (CONTEXT_TOKENS, load_plan.AGENTS_EMBEDDING_TOKENS)
        assert (status.state, status.pinned, status.can_suit_agents) == (ModelState.READY, True, False)
        await backend.load(A)
        await backend.load(A, purpose=LoadPurpose.AGENTS)
        assert len(site.engines) == 2, "nothing changes"
        await backend.unload(A)
        await generate(backend, A)
        assert site.engines[2].load.context_tokens == load.context_tokens, "it remembers the purpose"
        site.may_answer.clear()
        asking = asyncio.ensure_future(generate(backend, A))
        await until(lambda: site.engines[2].answered == 2)
        with pytest.raises(errors.Overloaded, match="a is in use"):
            await backend.load(A, purpose=LoadPurpose.CHATS)
        site.may_answer.set()
        await asking
        assert not backend.models()[0].can_suit_agents, "it is still loaded for agents"
        await backend.load(A, purpose=LoadPurpose.CHATS)
        assert [engine.load.context_tokens for engine in site.engines[3:]] == [load_plan.CPU_CONTEXT_TOKENS]


async def test_caller_during_the_change_gets_the_model_for_agents(site: Site) -> None:
    entry = site.entry(A, context=131_072, memory_bytes=None, slots=None)
    async with site.backend(entry, budget=2**40) as backend:
        await backend.load(A)
        await asyncio.gather(backend.load(A, purpose=LoadPurpose.AGENTS), generate(backend, A))
        assert [engine.load.context_tokens for engine in site.engines] == [load_plan.CPU_CONTEXT_TOKENS, CONTEXT_TOKENS]


async def test_model_with_no_room_for_agents_says_so(site: Site) -> None:
    async with site.backend(site.entry(A, context=131_072), site.entry(B, memory_bytes=None), budget=2**40) as backend:
        await until(lambda: all(one.state is ModelState.UNLOADED for one in backend.models()))
        assert [one.can_suit_agents for one in backend.models()] == [False, False], "memory is set; the model's own context is short"


async def test_program_has_no_purpose(site: Site) -> None:
    program = ModelProgram(("false", "{port}"))
    async with site.backend(site.entry(A, program=program)) as backend:
        with pytest.raises(errors.BadRequest, match="a runs in another program"):
            await backend.load(A, purpose=LoadPurpose.AGENTS)
        assert not backend.models()[0].can_suit_agents
