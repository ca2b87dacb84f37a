"""A model that is planned for agents, in llama.cpp: its slot has the planned context, in q8_0, and answers."""

from pathlib import Path

from services.inference.engine import llama_model
from services.inference.engine.engine_loop import EngineLoop
from services.inference.engine.engine_messages import GenerationAccepted, KvType, KvTypes, LoadCommand, PreparedPrompt, StartGeneration
from services.inference.engine.sampling import Parameters
from services.inference.models import load_plan
from services.inference.models.catalog import CatalogEntry
from services.inference.models.memory import MemoryBudget
from shared.gguf import gguf_header
from shared.protocol.agent_requirements import CONTEXT_TOKENS
from shared.types import LoadPurpose, ModelName
from tests import gguf_files
from tests.gguf_files import LlamaShape
from tests.services.inference.engine.commands import handle

SHAPE = LlamaShape(layers=2, embedding=64, heads=2, kv_heads=2, feed_forward=64, vocabulary=300, context=2 * CONTEXT_TOKENS)


def test_model_answers_with_a_long_context_in_q8_0(tmp_path: Path) -> None:
    file = tmp_path / "long.gguf"
    gguf_files.write_llama(file, SHAPE, weights="q8_0", seed=1)
    header = gguf_header.check_parts(file)
    entry = CatalogEntry(name=ModelName("long"), file=file, purpose=LoadPurpose.AGENTS, slots=1)
    ample = load_plan.plan(header, file.stat().st_size, entry, MemoryBudget(2**40, "a test"))
    plan = load_plan.plan(header, file.stat().st_size, entry, MemoryBudget(ample.need.ram - 1, "a test"))
    assert (ample.kv_type, plan.kv_type, plan.context_tokens) == (KvTypes(KvType.F16), KvTypes(KvType.Q8_0), CONTEXT_TOKENS)
    load = LoadCommand(str(file), 1, plan.context_tokens, 1, 0, kv_type=KvTypes(KvType.Q8_0), embedding_tokens=plan.embedding_tokens)
    with llama_model.opened(load, lambda _: None) as model:
        assert (model.context_tokens, model.embedder.context_tokens) == (CONTEXT_TOKENS, load_plan.AGENTS_EMBEDDING_TOKENS)
        loop = EngineLoop(model, slots=1)
        question = StartGeneration(1, PreparedPrompt("Write a function. " * 50), Parameters(0, 1, 0, 1, max_tokens=8, ignore_eos=True))
        assert isinstance(handle(loop, question), GenerationAccepted)
        tokens: list[int] = []
        while not loop.idle:
            step = loop.step()
            tokens += [token for progress in (step.progress if step is not None else ()) for token in progress.token_ids]
    assert len(tokens) == 8
