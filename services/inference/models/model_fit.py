"""Says whether a model that this machine doesn't have would fit, as its load would be planned.  Pure."""

from collections.abc import Sequence

from services.inference.models import load_plan
from services.inference.models.catalog import CatalogEntry
from services.inference.models.memory import MemoryBudget
from shared.api.inference import Fit, ModelFacts, ModelFit
from shared.gguf import gguf_header
from shared.gguf.gguf_header import GgufHeader, NotAModel

#: Of a large model, whose logits count as much as the context of a small one.
_VOCABULARY = 128_000
#: Of a token for one head.
_HEAD_WIDTH = 128


def plan(facts: ModelFacts, entry: CatalogEntry, budget: MemoryBudget, others: Sequence[int]) -> ModelFit:
    """``entry`` has the options of this worker's models, and ``others`` are their sizes."""
    try:
        header = gguf_header.read_beginning(facts.header, facts.file_bytes) if facts.header else _header(facts)
    except NotAModel as error:
        return ModelFit(fit=Fit.NO, detail=f"its file is not a usable model: {error}")
    planned = load_plan.plan(header, facts.file_bytes, entry, budget, others)
    fit, detail = Fit.YES, f"{planned.context_tokens} tokens of context, {planned.slots} at once, {planned.total}"
    on_gpu = bool(budget.vram) and (planned.gpu_layers, planned.cpu_experts) == (-1, 0)
    if not planned.total.fits(budget.total):
        fit, detail = Fit.NO, f"it needs {planned.total}, and models may use {budget.total}"
    elif budget.vram and not on_gpu and entry.gpu_layers:
        layers = header.block_count or 0
        on_processor = layers - planned.gpu_layers if planned.gpu_layers >= 0 else planned.cpu_experts
        what = "layers" if planned.gpu_layers >= 0 else "layers' experts"
        fit, detail = Fit.PARTLY, f"{on_processor} of {layers} {what} on the processor; {detail}"
    return ModelFit(fit=fit, detail=detail, context_tokens=planned.context_tokens, on_gpu=on_gpu, free_bytes=budget.fast_bytes)


def _header(facts: ModelFacts) -> GgufHeader:
    heads = max(1, facts.width // _HEAD_WIDTH)
    return GgufHeader(
        # An architecture without a cache, if it keeps no keys.
        architecture="llama" if facts.key_width else "bert",
        context_length=facts.context_tokens or None,
        block_count=facts.layers,
        embedding_length=facts.width,
        head_counts=(heads,) * facts.layers,
        kv_head_counts=(1,) * facts.layers,
        key_length=facts.key_width,
        value_length=facts.key_width,
        vocabulary_size=_VOCABULARY,
        pooling_type=None,
        tensor_bytes=facts.file_bytes,
        split_count=1,
        split_number=0,
    )
