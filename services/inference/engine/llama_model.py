"""One model in llama.cpp: its weights, context and batches. Owns all native objects except the samplers.

Only the engine's process imports this module. Not thread-safe: everything runs in one thread, except ``prompt_tokens``, which only
reads constant data and runs in the main thread.
"""

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import jinja2
import llama_cpp.llama_cpp as native

from services.inference.engine import model_loading, prompt
from services.inference.engine.embedding_context import EmbeddingContext
from services.inference.engine.engine_messages import LoadCommand, Loaded
from services.inference.engine.kv_slots import KvMode, SlotPlace
from services.inference.engine.model_loading import LoadRefused, NativeLog, NativeModel
from services.inference.engine.sampling import Parameters
from services.inference.engine.scheduler import Feed
from services.inference.engine.sequence import DrawnToken
from services.inference.engine.token_sampler import SamplerChains, TokenSampler
from services.inference.engine.vocabulary import ModelVocabulary
from services.inference.tool_calls import tool_format
from services.inference.tool_calls.tool_format import SHAPES, ToolStyle
from shared import errors
from shared.api.generation import ChatMessage, Tool


class LlamaModel:
    """A loaded model. ``opened`` creates and frees it."""

    def __init__(self, loaded: NativeModel, load: LoadCommand, log: NativeLog) -> None:
        model, context = loaded.model, loaded.context
        self._lowered = loaded.lowered
        self._model = model
        self._context = context
        self._vocab = native.llama_model_get_vocab(model)
        self._memory = native.llama_get_memory(context)
        self._log = log
        self._mode = load.kv_mode
        #: In the FAST layout, a sequence may use all of it.
        self.pool_tokens = int(native.llama_n_ctx(context))
        self.context_tokens = min(int(native.llama_n_ctx_seq(context)), int(native.llama_model_n_ctx_train(model)))
        self.step_tokens = int(native.llama_n_batch(context)) - load.slots
        #: A recurrent state can't be cut back to a prefix.
        self.can_reuse = not (native.llama_model_is_recurrent(model) or native.llama_model_is_hybrid(model))
        self._batch = _Batch(int(native.llama_n_batch(context)))
        self._samplers: dict[tuple[int, int], TokenSampler] = {}
        self._vocabulary = ModelVocabulary(self._vocab)
        self.longest_token_bytes = self._vocabulary.longest_token_bytes
        self._chains = SamplerChains(self._vocabulary)
        self._template = self._chat_template()
        self.tool_style = self._tool_style()
        if self.tool_style is not None:
            self._vocabulary.show_for_tools(SHAPES[self.tool_style].spellings)
        self.decode_seconds = 0.0
        # An embedded text must fit a slot, not the whole pool.
        longest = loaded.slot_tokens
        self.embedder = EmbeddingContext(model, context_tokens=longest, step_tokens=self.step_tokens, threads=load.threads, why=log.why)

    def describe(self) -> Loaded:
        text = ctypes.create_string_buffer(256)
        native.llama_model_desc(self._model, text, len(text))
        return Loaded(
            description=text.value.decode("utf-8", "replace"),
            context_tokens=self.context_tokens,
            gpu="; ".join(self._log.gpu),
            chat_template=self._template is not None,
            processor=native.llama_print_system_info().decode("utf-8", "replace").strip(" |"),
            tool_style=self.tool_style,
            lowered=self._lowered,
            only_embeds=not self._memory,
        )

    def prompt_tokens(self, messages: tuple[ChatMessage, ...], tools: tuple[Tool, ...] = (), *, raw: bool = False) -> list[int]:
        """Tokenize a chat, or with ``raw`` the text of its only message. Raises BadRequest."""
        if not self._memory:
            # llama.cpp would abort when a bidirectional model should sample a token.
            raise errors.BadRequest("this model only computes embeddings", hint="request embeddings, or use another model")
        special = self._vocabulary.special
        if raw:
            # There is only one speaker, who may use special tokens.
            return self._vocabulary.tokens_of(messages[0].content, context_tokens=self.context_tokens)
        if self._template is not None:
            rendered = self._template.render(messages, tools, special=special)
            return self._vocabulary.tokens_of(rendered, context_tokens=self.context_tokens)
        if len(messages) == 1 and not tools:
            return self._vocabulary.tokens_of(special.mark(messages[0].content), context_tokens=self.context_tokens)
        raise errors.BadRequest("this model has no chat template and only supports plain prompts", hint="send prompt, not messages")

    def piece(self, token: int, *, with_tools: bool = False) -> bytes | None:
        """Return the bytes of a token; None for an end token. ``with_tools`` spells out the marks of tool calls."""
        return self._vocabulary.piece(token, with_tools and token in self._vocabulary.shown_for_tools)

    def begin(self, sequence: tuple[int, int], parameters: Parameters, grammar: str, delivered: Sequence[int]) -> None:
        """Set up sampling for a sequence. Raises BadRequest."""
        sampler = TokenSampler(self._vocab, self._vocabulary, self._chains, parameters, grammar)
        self._samplers[sequence] = sampler
        for token in delivered:
            sampler.replay(token)

    def end(self, sequence: tuple[int, int]) -> None:
        """Safe to call twice."""
        if (sampler := self._samplers.pop(sequence, None)) is not None:
            sampler.free()

    def settle(self, place: SlotPlace) -> bool:
        """Make a slot hold exactly the tokens in ``place``. Return False, with the slot empty, if the model's memory can't."""
        if place.source is not None:
            # Between streams, only whole slots can be copied; in one pool, cells are shared.
            until = place.kept if self._mode is KvMode.FAST else -1
            if self._mode is KvMode.FAST:
                native.llama_memory_seq_rm(self._memory, place.slot, -1, -1)
            native.llama_memory_seq_cp(self._memory, place.source, place.slot, -1 if until < 0 else 0, until)
        if native.llama_memory_seq_rm(self._memory, place.slot, place.kept, -1):
            return True
        self.clear(place.slot)
        return False

    def clear(self, slot: int) -> None:
        native.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def run(self, feeds: Sequence[Feed]) -> list[DrawnToken | None]:
        """Compute one batch and return the next token for each feed that samples. Raises ModelCrashed; the process must then end,
        because the state of the model's memory after a failed decode is unknown."""
        rows = self._batch.fill(feeds)
        began = time.perf_counter()
        status = native.llama_decode(self._context, self._batch.native)
        if status == 0:
            native.llama_synchronize(self._context)
        self.decode_seconds += time.perf_counter() - began
        if status != 0:
            raise errors.ModelCrashed(f"llama_decode gave {status}: {self._log.why()}")
        return [self._draw(feed, row) if feed.sample else None for feed, row in zip(feeds, rows, strict=True)]

    def free(self) -> None:
        for sequence in list(self._samplers):
            self.end(sequence)
        self.embedder.free()
        self._batch.free()

    def _draw(self, feed: Feed, row: int) -> DrawnToken:
        sampler = self._samplers[feed.sequence.id, feed.sequence.answer]
        return sampler.draw(self._context, row, feed.start + len(feed.tokens))

    def _chat_template(self) -> prompt.ChatTemplate | None:
        source = native.llama_model_chat_template(self._model, None)
        if source is None:
            return None
        try:
            template = prompt.ChatTemplate(source.decode("utf-8", "replace"), bos=self._vocabulary.bos, eos=self._vocabulary.eos)
            template.render((ChatMessage("user", "hello"),))
        except (jinja2.TemplateError, errors.BadRequest) as error:
            raise LoadRefused(f"the model's chat template is not usable: {error}") from error
        return template

    def _tool_style(self) -> ToolStyle | None:
        if self._template is None:
            return None
        if not self._template.supports_tools:
            return ToolStyle.GENERIC
        return tool_format.style_of(self._template.source, self._template.rendered_call)


class _Batch:
    """llama.cpp's arrays of one batch. Slices are assigned in C; single elements would cost a microsecond each."""

    def __init__(self, tokens: int) -> None:
        self.native = native.llama_batch_init(tokens, 0, 1)
        self._token = (native.llama_token * tokens).from_address(ctypes.addressof(self.native.token.contents))
        self._position = (native.llama_pos * tokens).from_address(ctypes.addressof(self.native.pos.contents))
        self._logits = (ctypes.c_int8 * tokens).from_address(ctypes.addressof(self.native.logits.contents))
        counts = (ctypes.c_int32 * tokens).from_address(ctypes.addressof(self.native.n_seq_id.contents))
        counts[:] = [1] * tokens
        #: Each token's list of sequences, which always has one.
        self._slots = [self.native.seq_id[at] for at in range(tokens)]

    def fill(self, feeds: Sequence[Feed]) -> list[int]:
        """Fill the batch; return the row of each feed's last token."""
        at, rows = 0, []
        for feed in feeds:
            count = len(feed.tokens)
            end = at + count
            self._token[at:end] = list(feed.tokens)
            self._position[at:end] = list(range(feed.start, feed.start + count))
            self._logits[at:end] = [0] * count
            for row in range(at, end):
                self._slots[row][0] = feed.slot
            self._logits[end - 1] = feed.sample
            rows.append(end - 1)
            at = end
        self.native.n_tokens = at
        return rows

    def free(self) -> None:
        native.llama_batch_free(self.native)


@contextmanager
def opened(load: LoadCommand, progressed: Callable[[float], None]) -> Iterator[LlamaModel]:
    """Load a model and create its context. Raises LoadRefused."""
    log = NativeLog()
    callback = native.llama_log_callback(log.record)
    native.llama_log_set(callback, ctypes.c_void_p(0))
    native.llama_backend_init()
    try:
        with model_loading.loaded(load, log, progressed) as native_model:
            opened_model = LlamaModel(native_model, load, log)
            try:
                yield opened_model
            finally:
                opened_model.free()
    finally:
        # The callback object must outlive every native call that may log.
        native.llama_log_set(native.llama_log_callback(0), ctypes.c_void_p(0))
