"""Computes embeddings in a second llama.cpp context on the model's weights, which is created for the first text.

Only the engine's process imports this module. The context for answers can't do it: a context for embeddings outputs every token and
has a row of logits for each, so its batches must be small if the vocabulary is large.
"""

import math
import re
from collections.abc import Sequence
from functools import lru_cache

import llama_cpp.llama_cpp as native

from services.inference.engine import model_loading, vocabulary
from services.inference.engine.embedding_loop import TextPiece, probability
from services.inference.engine.model_loading import NativeBatch, NativeLog
from shared import errors
from shared.gguf.gguf_header import PoolingKind

#: For the logits that llama.cpp computes for every token: 1 MB each with a vocabulary of 256,000.
LOGITS_BYTES = 64 * 1024 * 1024
SLOTS = 32
#: The same for recurrent models, whose slots each have a state in memory.
SLOTS_WITH_STATE = 4

_FLOAT_BYTES = 4
#: Their headers need not say so.
_BIDIRECTIONAL = frozenset({"gemma-embedding", "dream", "llada", "llada-moe", "rnd1"})


class EmbeddingContext:
    """Implements `EmbedderInterface`. Valid as long as the model is. Not thread-safe."""

    def __init__(self, model: native.llama_model_p, *, context_tokens: int, step_tokens: int, threads: int, log: NativeLog) -> None:
        self._model = model
        self._vocab = native.llama_model_get_vocab(model)
        self._threads = threads
        self._log = log
        self._context: native.llama_context_p | None = None
        self._batch: NativeBatch | None = None
        keeps_state = bool(native.llama_model_is_recurrent(model) or native.llama_model_is_hybrid(model))
        self.context_tokens = context_tokens
        self.vocabulary_size = int(native.llama_vocab_n_tokens(self._vocab))
        self.step_tokens = max(1, min(step_tokens, context_tokens, LOGITS_BYTES // (_FLOAT_BYTES * self.vocabulary_size)))
        # llama.cpp aborts if a batch has fewer tokens than slots.
        self.slots = min(SLOTS_WITH_STATE if keeps_state else SLOTS, self.step_tokens)
        self.dimensions = int(native.llama_model_n_embd_out(model))
        self.pooling = PoolingKind.MEAN
        self.whole = False
        #: Models with several classes compute probabilities themselves; the first class is "relevant".
        self._gives_logits = False
        #: Remembers the last one, which each document repeats.
        self._tokens_of_query = lru_cache(1)(self._tokens)

    def prepare(self) -> None:
        if self._context is not None:
            return
        kind = self._pooling_type()
        # Encoder-decoder models are not supported.
        if native.llama_model_has_encoder(self._model) or not 0 < kind <= max(PoolingKind):
            raise errors.BadRequest("this model has no embeddings", hint="use a model for embeddings or for text generation")
        self.pooling = PoolingKind(kind)
        if self.pooling is PoolingKind.RANK:
            self.dimensions = 1
            self._gives_logits = native.llama_model_n_cls_out(self._model) == 1
        context = self._create(self.step_tokens, kind)
        self.whole = not self._is_causal()
        if self.whole:
            native.llama_free(context)
            context = self._create(self.context_tokens, kind)
        self._context = context
        self._batch = NativeBatch(int(native.llama_n_batch(context)))

    def _is_causal(self) -> bool:
        """Return the attention of the newest context, which the file or llama.cpp sets. Prebuilt libraries lack llama_get_causal_attn."""
        if self._log.is_causal is not None:
            return self._log.is_causal
        architecture = model_loading.metadata(self._model, "general.architecture")
        is_causal = model_loading.metadata(self._model, f"{architecture}.attention.causal")
        return architecture not in _BIDIRECTIONAL and is_causal != "false"

    def tokens_of(self, text: str) -> list[int]:
        """With the model's start and end tokens; special tokens in the text are plain text."""
        return self._tokens(text, add_special=True)

    def tokens_of_pair(self, query: str, text: str) -> list[int]:
        """Return the tokens of a query and a text to rank, in the order of the model's own template, or else as in BERT."""
        template = native.llama_model_chat_template(self._model, b"rerank")
        if template:
            parts = re.split(r"(\{query\}|\{document\})", template.decode("utf-8", "replace"))
            given = {"{query}": self._tokens_of_query(query), "{document}": self._tokens(text)}
            return [token for part in parts for token in given.get(part) or self._tokens(part, spelled=True)]
        end = native.llama_vocab_eos(self._vocab)
        end = native.llama_vocab_sep(self._vocab) if end == vocabulary.NO_TOKEN else end
        ends = [end] if native.llama_vocab_get_add_eos(self._vocab) else []
        begins = [native.llama_vocab_bos(self._vocab)] if native.llama_vocab_get_add_bos(self._vocab) else []
        parted = [native.llama_vocab_sep(self._vocab)] if native.llama_vocab_get_add_sep(self._vocab) else []
        return [*begins, *self._tokens_of_query(query), *ends, *parted, *self._tokens(text), *ends]

    def _tokens(self, text: str, *, add_special: bool = False, spelled: bool = False) -> list[int]:
        """``spelled``: special tokens in the text count."""
        tokens, count = vocabulary.tokenize(self._vocab, text, add_special=add_special, parse_special=spelled)
        return tokens[:count]

    def run(self, pieces: Sequence[TextPiece]) -> list[Sequence[float]]:
        assert self._context is not None  # `prepare` created it
        assert self._batch is not None
        batch = self._batch.filled((piece.slot, piece.start, piece.tokens, [1] * len(piece.tokens)) for piece in pieces)
        status = native.llama_decode(self._context, batch)
        if status != 0:
            raise errors.ModelCrashed(f"llama_decode of embeddings gave {status}: {self._log.why()}")
        native.llama_synchronize(self._context)
        rows: list[Sequence[float]] = [native.llama_get_embeddings_seq(self._context, piece.slot)[: self.dimensions] for piece in pieces]
        if self._gives_logits:
            rows = [[probability(row[0])] for row in rows]
        for piece in pieces:
            if piece.ends:
                self.clear(piece.slot)
        return rows

    def clear(self, slot: int) -> None:
        assert self._context is not None  # `prepare` created it
        # A bidirectional model has no KV cache.
        if memory := native.llama_get_memory(self._context):
            native.llama_memory_seq_rm(memory, slot, -1, -1)

    def free(self) -> None:
        """Call it before the model is freed. Safe to call twice."""
        if self._batch is not None:
            self._batch.free()
            self._batch = None
        if self._context is not None:
            native.llama_free(self._context)
            self._context = None

    def _create(self, tokens: int, pooling: int) -> native.llama_context_p:
        """Create a context whose batches have at least ``tokens`` tokens."""
        # llama.cpp tries a batch with the same number in each slot, and aborts if that exceeds the outputs.
        batch_tokens = math.ceil(tokens / self.slots) * self.slots
        parameters = native.llama_context_default_params()
        # Room for one started text and a batch of others.
        parameters.n_ctx = self.context_tokens + batch_tokens
        parameters.n_batch = parameters.n_ubatch = batch_tokens
        parameters.n_outputs_max = batch_tokens
        parameters.n_seq_max = self.slots
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.kv_unified = True
        parameters.embeddings = True
        parameters.pooling_type = pooling
        # With flash attention, vectors depend more on how a text is split into pieces. Even without it, quantized weights change a
        # vector of length 1 by up to 0.01, depending on the processor and the batch (SmolLM2, Q4_1).
        parameters.flash_attn_type = native.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context: native.llama_context_p | None = native.llama_init_from_model(self._model, parameters)
        if not context:
            raise errors.Unavailable(f"not enough memory for embeddings: {self._log.why()}", hint="try again when less is running")
        return context

    def _pooling_type(self) -> int:
        """Return the pooling in the model's file, or the mean if there is none, as in models that generate text."""
        kind = model_loading.metadata(self._model, "general.architecture")
        written = model_loading.metadata(self._model, f"{kind}.pooling_type")
        number = int(written) if written.isdigit() else native.LLAMA_POOLING_TYPE_NONE
        return int(native.LLAMA_POOLING_TYPE_MEAN if number == native.LLAMA_POOLING_TYPE_NONE else number)
