"""One model in llama.cpp: its weights, context and batches. Owns all native objects except the samplers.

Only the engine's process imports this module. Not thread-safe: everything runs in one thread, except ``prompt_tokens`` and ``convert``,
which only read constant data; they run in the main thread.
"""

import ctypes
import mmap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import llama_cpp.llama_cpp as native
import numpy as np

from services.inference.engine import model_loading, sequence
from services.inference.engine.embedding_context import EmbeddingContext
from services.inference.engine.engine_messages import ConvertTokens, KvMode, LoadCommand, Loaded, PreparedPrompt, StartGeneration
from services.inference.engine.kv_slots import KvLayout, SlotPlace
from services.inference.engine.model_loading import NativeBatch, NativeLog, NativeModel
from services.inference.engine.prompt_cache import HashedTokens
from services.inference.engine.sampling import Parameters
from services.inference.engine.scheduler import Feed
from services.inference.engine.sequence import DrawnToken, ImagePrompt, ThoughtLimit
from services.inference.engine.special_tokens import IMAGE_MARK
from services.inference.engine.token_sampler import StepSampler, TokenSampler
from services.inference.engine.vocabulary import ModelVocabulary
from services.inference.images.image_encoder import ImageRows
from services.inference.images.prompt_images import DecodedImage, position_of
from services.inference.structured_output.constraint import Constraint, Constraints
from shared import errors
from shared.api.inference import MAX_CONVERTED_BYTES

#: A gap between two tokens that readers of an answer don't notice. A large GPU reads a thousand tokens in it.
GPU_UNNOTICED_SECONDS = 0.1
#: A state is copied near the end of a prompt, and each time so many tokens were read.
CHECKPOINT_TOKENS = 2048
MAX_CHECKPOINTS = 8
#: For all slots together. States of large models have dozens of MiB.
MAX_CHECKPOINT_BYTES = 1024 * 2**20
#: A state without the cells, which can be cut.
_PARTIAL = native.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY


class LlamaModel:
    """A loaded model, the `EngineModel` of its loop. ``opened`` creates and frees it."""

    def __init__(self, loaded: NativeModel, load: LoadCommand, log: NativeLog) -> None:
        model, context = loaded.model, loaded.context
        self._lowered = loaded.lowered
        self._adapters = loaded.adapters
        self._model, self._context = model, context
        self._vocab = native.llama_model_get_vocab(model)
        self._memory = native.llama_get_memory(context)
        self._log = log
        self._numerics = model_loading.numerics_of(load, log)
        self.layout = model_loading.layout_of(load)
        self.unnoticed_seconds = GPU_UNNOTICED_SECONDS if model_loading.on_gpu(load) else 0.0
        #: Whether answers and prompts are computed in batches of their own. On a processor, this divides the work on the cells of a prompt
        #: equally between the threads, and without flash attention, answers beside prompts would also pass over their cells.
        self._divides = self.layout is KvLayout.STREAMS and not model_loading.on_gpu(load)
        #: The tokens that some layers see; 0 for all.
        self._window = int(native.llama_model_n_swa(model))
        #: They see their own chunk of so many tokens, instead of the last ones.
        self._has_chunks = model_loading.metadata(model, "general.architecture") == "llama4"
        #: In the POOL layout, a sequence may use all of it.
        self.pool_tokens = int(native.llama_n_ctx(context))
        self.context_tokens = min(int(native.llama_n_ctx_seq(context)), int(native.llama_model_n_ctx_train(model)))
        batch = int(native.llama_n_batch(context))
        self.step_tokens = min(batch, model_loading.step_tokens(load) + load.slots) - load.slots
        self._images = loaded.images
        is_recurrent = bool(native.llama_model_is_recurrent(model) or native.llama_model_is_hybrid(model))
        self.can_cut = not is_recurrent
        is_exact = load.kv_mode is KvMode.EXACT and not model_loading.on_gpu(load)
        is_kept = bool(self._memory) and self.can_cut and not (self._window and model_loading.on_gpu(load))
        #: Whether wrong guesses can be cut off, and right ones have the bits that `exact` guarantees.
        self._can_draft = load.speculates and is_kept and (not is_exact or model_loading.computes_exactly(load))
        #: The matrices of an adapter mostly don't have them.
        self._can_draft_adapters = not is_exact
        #: llama.cpp only saves the end of a window, and a recurrent state.
        self.can_cut_saved = self.can_cut and not self._window
        self._checkpoints = _Checkpoints(context) if is_recurrent else None
        #: Slots with a window, and the tokens of the last prompt that each has read.
        self._prompt_tokens: dict[int, int] = {}
        self._batch = NativeBatch(batch)
        self._image_batch = _ImageBatch(batch)
        self._samplers: dict[tuple[int, int], TokenSampler] = {}
        self._vocabulary = ModelVocabulary(self._vocab)
        self.longest_token_bytes = self._vocabulary.longest_token_bytes
        self._step_sampler = StepSampler(self._vocabulary.size, load.threads)
        #: Made by ``show``.
        self._constraints: Constraints | None = None
        self.decode_seconds = 0.0
        # An embedded text must fit a slot, not the whole pool.
        longest = min(loaded.slot_tokens, load.embedding_tokens or loaded.slot_tokens)
        self.embedder = EmbeddingContext(model, context_tokens=longest, step_tokens=self.step_tokens, threads=load.threads, log=log)

    def describe(self) -> Loaded:
        text = ctypes.create_string_buffer(256)
        native.llama_model_desc(self._model, text, len(text))
        template = native.llama_model_chat_template(self._model, None) or b""
        return Loaded(
            description=text.value.decode("utf-8", "replace"),
            context_tokens=self.context_tokens,
            gpu="; ".join(self._log.gpu),
            chat_template=template.decode("utf-8", "replace"),
            processor=native.llama_print_system_info().decode("utf-8", "replace").strip(" |"),
            bos=self._vocabulary.bos,
            eos=self._vocabulary.eos,
            special=self._vocabulary.spellings,
            infill=self._vocabulary.infill,
            lowered=self._lowered,
            only_embeds=not self._memory,
            adapter_problems=tuple(adapter.problem for adapter in self._adapters),
            sees_images=self._images is not None,
            numerics=self._numerics,
        )

    def check_adapter(self, number: int) -> None:
        if not 0 <= number <= len(self._adapters):
            raise errors.Unavailable(f"this engine has no adapter {number}")
        if number and (problem := self._adapters[number - 1].problem):
            raise errors.Unavailable(f"the adapter cannot be used here: {problem}", hint="another worker may have it")

    def show(self, spellings: tuple[str, ...]) -> None:
        self._vocabulary.show(spellings)
        self._constraints = Constraints(self._vocabulary)

    def prompt_tokens(self, prompt: PreparedPrompt) -> list[int]:
        if not self._memory:
            # llama.cpp would abort when a bidirectional model should sample a token.
            raise errors.BadRequest("this model only computes embeddings", hint="request embeddings, or use another model")
        self._compile(prompt)
        return self._vocabulary.tokens_of(prompt.text, context_tokens=self.context_tokens)

    def read_images(self, command: StartGeneration, images: Sequence[DecodedImage], is_wanted: Callable[[], bool]) -> ImagePrompt:
        if self._images is None:
            raise errors.BadRequest("this model doesn't support images", hint="leave them out, or use another model")
        self._compile(command.prompt)
        texts = command.prompt.text.split(IMAGE_MARK)
        if len(texts) != len(images) + 1:
            raise errors.BadRequest("the model's chat template does not show each image once", hint="put images into messages of the user")
        prompt = self._images.lay_out([self._vocabulary.cut(text) for text in texts], images, bos=self._vocabulary.first)
        sequence.check_fits(max(1, len(prompt.tokens)), self.context_tokens)
        if any(span.is_whole and span.end - span.start > self._image_batch.rows for span in prompt.spans):
            raise errors.BadRequest("messages: an image takes more tokens than this model reads at once", hint="send it in another shape")
        began = time.perf_counter()
        rows = self._images.encode(prompt, images, salt=command.salt, is_wanted=is_wanted)
        return ImagePrompt(HashedTokens(prompt.tokens, tuple(prompt.spans)), rows, time.perf_counter() - began)

    def _compile(self, prompt: PreparedPrompt) -> Constraint | None:
        """Raises BadRequest, which starts with the field."""
        if not prompt.grammar or self._constraints is None:
            return None
        try:
            return self._constraints.start(prompt.grammar, prompt.triggers, prompt.field)
        except errors.BadRequest:
            if prompt.is_optional:
                return None
            raise

    def convert(self, command: ConvertTokens) -> bytes:
        if command.token_ids is not None:
            return self._vocabulary.text_of(command.token_ids)
        content = self._vocabulary.packed_tokens_of(command.prompt, add_special=command.add_special)
        if len(content) > MAX_CONVERTED_BYTES:
            raise errors.BadRequest(f"the answer would have {len(content)} bytes; at most {MAX_CONVERTED_BYTES} are allowed")
        return content

    def piece(self, token: int) -> bytes | None:
        return self._vocabulary.piece(token)

    def begin(self, sequence: tuple[int, int], parameters: Parameters, prompt: PreparedPrompt, delivered: Sequence[int]) -> None:
        budget = prompt.budget
        limit = None if budget is None else ThoughtLimit(budget, self._vocabulary.tokens_in(budget.ends[0]))
        sampler = TokenSampler(self._vocabulary, parameters, self._compile(prompt), limit)
        self._samplers[sequence] = sampler
        for token in delivered:
            sampler.replay(token)

    def end(self, sequence: tuple[int, int]) -> None:
        if (sampler := self._samplers.pop(sequence, None)) is not None:
            sampler.free()

    def settle(self, place: SlotPlace) -> int:
        """If the model's memory can't be cut there, hold what its last checkpoint has, or nothing."""
        for slot in place.evicted:
            self.clear(slot)
        if place.saved is not None:
            self.clear(place.slot)
            if not self._restore(place.slot, place.saved):
                return 0
        if place.source is not None:
            # Between streams, only whole slots can be copied; in one pool, cells are shared.
            until = place.position(place.kept) if self.layout is KvLayout.POOL else -1
            if self.layout is KvLayout.POOL:
                native.llama_memory_seq_rm(self._memory, place.slot, -1, -1)
            native.llama_memory_seq_cp(self._memory, place.source, place.slot, -1 if until < 0 else 0, until)
        if self._checkpoints is not None:
            self._checkpoints.take_over(place)
        end = place.position(place.kept)
        if native.llama_memory_seq_rm(self._memory, place.slot, end, -1) and self._has_window(place.slot, end):
            return place.kept
        last = 0 if self._checkpoints is None else self._checkpoints.restore(place.slot)
        if last and native.llama_memory_seq_rm(self._memory, place.slot, place.position(last), -1):
            return last
        self.clear(place.slot)
        return 0

    def _has_window(self, slot: int, position: int) -> bool:
        """Whether the slot still has the tokens that a sliding window shows to the one at this position."""
        if not self._window or not position:
            return True
        # A token sees itself as a part of the window.
        first = position - (position % self._window if self._has_chunks else self._window - 1)
        # -1 if nothing is left.
        return 0 <= int(native.llama_memory_seq_pos_min(self._memory, slot)) <= max(0, first)

    def clear(self, slot: int) -> None:
        if self._checkpoints is not None:
            self._checkpoints.forget(slot)
        native.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def saved_bytes(self, slot: int) -> int:
        """Return the size of ``save``, or a little more."""
        return int(native.llama_state_seq_get_size_ext(self._context, slot, 0))

    def saved_tokens(self, slot: int, tokens: HashedTokens) -> int:
        """Return how many of a slot's tokens can be saved. If all of them must be restored: those that the next prompt likely shares."""
        if self._checkpoints is not None:
            return self._checkpoints.last(slot)
        count = len(tokens.tokens)
        # The same prompt once more computes its last token again.
        end = min(count, self._prompt_tokens.get(slot, count + 1) - 1)
        return end if self._has_window(slot, position_of(end, tokens.spans)) else count

    def save(self, slot: int, position: int) -> memoryview | None:
        """Cut a slot to ``saved_tokens``, which end at this position, and return what ``settle`` restores; None without memory for it."""
        if self._checkpoints is not None and not self._checkpoints.restore(slot):
            raise errors.ModelCrashed(f"the state of slot {slot} could not be restored: {self._log.why()}")
        native.llama_memory_seq_rm(self._memory, slot, position, -1)
        size = self.saved_bytes(slot)
        try:
            # Unlike an array of ctypes, it isn't cleared first.
            state = memoryview(mmap.mmap(-1, size))
        except OSError:
            return None
        target = (ctypes.c_uint8 * size).from_buffer(state)
        written = native.llama_state_seq_get_data_ext(self._context, target, size, slot, 0)
        return state if written == size else None

    def _restore(self, slot: int, state: memoryview) -> bool:
        source = (ctypes.c_uint8 * len(state)).from_buffer(state)
        if native.llama_state_seq_set_data_ext(self._context, source, len(state), slot, 0) == len(state):
            return True
        self.clear(slot)
        return False

    def can_draft(self, adapter: int) -> bool:
        return self._can_draft and (not adapter or self._can_draft_adapters)

    def run(self, feeds: Sequence[Feed]) -> list[list[DrawnToken]]:
        if self._adapters:
            self._use_adapter(feeds[0].sequence.adapter)
        # A batch has tokens, or rows of one image, after which nothing is drawn.
        for feed in feeds:
            if feed.image is not None:
                native.llama_set_causal_attn(self._context, not feed.image.is_whole)
                self._decode(self._image_batch.filled(feed))
                native.llama_set_causal_attn(self._context, True)
        drawn: dict[int, list[DrawnToken]] = {}
        texts = [feed for feed in feeds if feed.image is None]
        batches = [[feed for feed in texts if feed.sequence.reading is reads] for reads in (True, False)] if self._divides else [texts]
        for batch in filter(None, batches):
            self._decode(self._batch.filled(_piece(feed) for feed in batch))
            drawn |= self._draw(batch)
        if self._checkpoints is not None:
            self._checkpoints.save(feeds)
        if self._window:
            self._prompt_tokens |= {feed.slot: len(feed.sequence.tokens) for feed in texts if feed.sample and feed.sequence.reading}
        for feed in feeds:
            if feed.draft and len(feed.draft) >= len(drawn[feed.slot]):
                end = feed.start + len(feed.tokens) + len(drawn[feed.slot]) - 1
                native.llama_memory_seq_rm(self._memory, feed.slot, position_of(end, feed.sequence.hashed.spans), -1)
        return [drawn.get(feed.slot, []) for feed in feeds]

    def _decode(self, batch: native.llama_batch) -> None:
        began = time.perf_counter()
        status = native.llama_decode(self._context, batch)
        if status == 0:
            native.llama_synchronize(self._context)
        self.decode_seconds += time.perf_counter() - began
        if status != 0:
            raise errors.ModelCrashed(f"llama_decode gave {status}: {self._log.why()}")

    def _use_adapter(self, number: int) -> None:
        """Have the next batches computed with it. llama.cpp plans its memory again if it is another one than before."""
        used = self._adapters[number - 1 : number] if number else ()
        adapters = (native.llama_adapter_lora_p_ctypes * 1)(*(adapter.adapter for adapter in used))
        native.llama_set_adapters_lora(self._context, adapters, len(used), (ctypes.c_float * 1)(*(adapter.scale for adapter in used)))

    def free(self) -> None:
        for key in list(self._samplers):
            self.end(key)
        self._step_sampler.free()
        self.embedder.free()
        self._batch.free()

    def _draw(self, feeds: Sequence[Feed]) -> dict[int, list[DrawnToken]]:
        """Draw the next tokens after a batch; return them by slot."""
        drawing = [feed for feed in feeds if feed.sample]
        if not drawing:
            return {}
        # In the order of the batch.
        rows = sum(1 + len(feed.draft) for feed in drawing)
        logits = np.ctypeslib.as_array(native.llama_get_logits(self._context), (rows, self._vocabulary.size))
        samplers = [self._samplers[feed.sequence.id, feed.sequence.answer] for feed in drawing]
        positions = [feed.start + len(feed.tokens) for feed in drawing]
        if draft := drawing[0].draft:  # the only answer
            drawn = [self._step_sampler.draw_draft(samplers[0], logits, positions[0], draft)]
        else:
            drawn = [[one] for one in self._step_sampler.draw(samplers, logits, positions)]
        return dict(zip((feed.slot for feed in drawing), drawn, strict=True))


def _piece(feed: Feed) -> tuple[int, int, Sequence[int], Sequence[int]]:
    outputs = [0] * (len(feed.tokens) - 1) + [feed.sample] * (1 + len(feed.draft))
    return feed.slot, position_of(feed.start, feed.sequence.hashed.spans), (*feed.tokens, *feed.draft), outputs


class _ImageBatch:
    """llama.cpp's arrays of one batch with embeddings of an image."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._counts = (ctypes.c_int32 * rows)(*[1] * rows)
        self._slot = (native.llama_seq_id * 1)()
        self._slots = (ctypes.POINTER(native.llama_seq_id) * rows)(*[ctypes.cast(self._slot, ctypes.POINTER(native.llama_seq_id))] * rows)
        self._logits = (ctypes.c_int8 * rows)()
        #: Kept while llama.cpp reads them.
        self._positions = np.empty(0, np.int32)

    def filled(self, feed: Feed) -> native.llama_batch:
        assert feed.image is not None
        image, spans = feed.image, feed.sequence.hashed.spans
        rows = feed.sequence.rows[image.start]
        assert isinstance(rows, ImageRows)
        begin = feed.start - image.start
        end = begin + len(feed.tokens)
        values, positions = rows.values[begin:end], rows.positions(position_of(image.start, spans), begin, end)
        self._slot[0], self._positions = feed.slot, positions
        return native.llama_batch(
            n_tokens=end - begin,
            embd=values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            pos=positions.ctypes.data_as(ctypes.POINTER(native.llama_pos)),
            n_seq_id=self._counts,
            seq_id=self._slots,
            logits=self._logits,
        )


class _Checkpoints:
    """Copies of recurrent states, to which a slot can go back: unlike cells, a state only knows all of its tokens."""

    def __init__(self, context: "native.llama_context_p") -> None:
        self._context = context
        #: Slot -> number of tokens -> state, in order.
        self._saved: dict[int, dict[int, ctypes.Array[ctypes.c_uint8]]] = {}

    def save(self, feeds: Sequence[Feed]) -> None:
        """A batch was computed; copy the states of prompts that pause or have become long."""
        for feed in feeds:
            end = feed.start + len(feed.tokens)
            is_long = feed.image is None and end // CHECKPOINT_TOKENS > feed.start // CHECKPOINT_TOKENS
            if feed.sequence.reading and (is_long or end == feed.sequence.pause):
                size = native.llama_state_seq_get_size_ext(self._context, feed.slot, _PARTIAL)
                state = (ctypes.c_uint8 * size)()
                if native.llama_state_seq_get_data_ext(self._context, state, size, feed.slot, _PARTIAL) == size:
                    saved = self._saved.setdefault(feed.slot, {})
                    saved[end] = state
                    while len(saved) > 1 and (len(saved) > MAX_CHECKPOINTS or self._bytes > MAX_CHECKPOINT_BYTES):
                        del saved[next(iter(saved))]

    @property
    def _bytes(self) -> int:
        return sum(len(state) for saved in self._saved.values() for state in saved.values())

    def take_over(self, place: SlotPlace) -> None:
        """A slot gets the beginning of another slot, or keeps its own."""
        source = self._saved.get(place.slot if place.source is None else place.source, {})
        self._saved[place.slot] = {end: state for end, state in source.items() if end <= place.kept}

    def last(self, slot: int) -> int:
        """Return the number of tokens of a slot's last copy, or 0."""
        return next(reversed(self._saved.get(slot, {})), 0)

    def restore(self, slot: int) -> int:
        """Bring back a slot's last copy; return its number of tokens, or 0 if there is none."""
        end, state = next(reversed(self._saved.get(slot, {}).items()), (0, None))
        if state is None or not native.llama_state_seq_set_data_ext(self._context, state, len(state), slot, _PARTIAL):
            return 0
        return end

    def forget(self, slot: int) -> None:
        self._saved.pop(slot, None)


@contextmanager
def opened(load: LoadCommand, progressed: Callable[[float], None]) -> Iterator[LlamaModel]:
    """Load a model and create its context. Raises LoadRefused."""
    with model_loading.native_log() as log, model_loading.loaded(load, log, progressed) as native_model:
        opened_model = LlamaModel(native_model, load, log)
        try:
            yield opened_model
        finally:
            opened_model.free()
