"""One model in llama.cpp: tokens of a prompt, one decode, one sampled token. Owns every native object.

Only the engine process imports this module. Not thread-safe; everything runs in the process's main thread.
"""

import ctypes
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import jinja2
import llama_cpp.llama_cpp as native

from services.inference.engine import prompt, sampling
from services.inference.engine.sampling import Parameters
from services.inference.engine.scheduler import Feed
from services.inference.engine.wire import Load, Loaded
from shared import errors
from shared.api.generation import ChatMessage

#: Per slot, where neither the setting nor a smaller model says otherwise: memory grows with slots × context.
DEFAULT_CONTEXT_TOKENS = 2048
#: Of a prompt, in one step: what a running answer can be delayed by, about 0.2 s of a 135M model on two cores.
CHUNK_TOKENS = 256
#: A token id that llama.cpp returns for "this vocabulary has none".
_NO_TOKEN = -1
_ERROR_LEVEL = 4
_SPECIAL = native.LLAMA_TOKEN_ATTR_CONTROL | native.LLAMA_TOKEN_ATTR_UNKNOWN


class LoadRefused(Exception):
    """The file is no usable model, or does not fit the memory; the message says why."""


class NativeLog:
    """What llama.cpp says, of which the reasons of errors and the use of a GPU are worth keeping."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=5)
        #: The devices and the number of layers on them; empty without a GPU.
        self.gpu: list[str] = []

    def take(self, level: int, text: bytes, _user: object) -> None:
        line = text.decode("utf-8", "replace").strip()
        if level == _ERROR_LEVEL:
            self._errors.append(line)
        elif "using device" in line or "layers to GPU" in line:
            self.gpu.append(line.partition(": ")[2])

    def why(self) -> str:
        return "; ".join(self._errors) or "llama.cpp gave no reason"


class LlamaModel:
    """A loaded model with room for ``slots`` sequences. Made by ``opened``, which also frees it."""

    def __init__(self, model: native.llama_model_p, context: native.llama_context_p, load: Load, log: NativeLog) -> None:
        self._model = model
        self._context = context
        self._vocab = native.llama_model_get_vocab(model)
        self._memory = native.llama_get_memory(context)
        self._log = log
        self.context_tokens = native.llama_n_ctx_seq(context)
        self._batch_tokens = max(CHUNK_TOKENS, load.slots)
        self._batch = native.llama_batch_init(self._batch_tokens, 0, 1)
        self._samplers: dict[int, native.llama_sampler_p] = {}
        self._parameters: dict[int, Parameters] = {}
        self._special = prompt.SpecialTokens(tuple(self._special_spellings()))
        self._template = self._chat_template()
        self._bos = native.llama_vocab_bos(self._vocab) if native.llama_vocab_get_add_bos(self._vocab) else _NO_TOKEN

    def describe(self) -> Loaded:
        text = ctypes.create_string_buffer(256)
        native.llama_model_desc(self._model, text, len(text))
        return Loaded(
            description=text.value.decode("utf-8", "replace"),
            context_tokens=self.context_tokens,
            gpu="; ".join(self._log.gpu),
            chat_template=self._template is not None,
            processor=native.llama_print_system_info().decode("utf-8", "replace").strip(" |"),
        )

    def prompt_tokens(self, messages: tuple[ChatMessage, ...]) -> list[int]:
        """Raises BadRequest where the model cannot take these messages."""
        marked = tuple(ChatMessage(message.role, self._special.mark(message.content)) for message in messages)
        if self._template is not None:
            rendered = self._template.render(marked)
        elif len(marked) == 1:
            rendered = marked[0].content
        else:
            raise errors.BadRequest("this model has no chat template and takes one plain prompt only", hint="send prompt, not messages")
        tokens = [token for part in self._special.cut(rendered) for token in self._tokenize(part)]
        if self._bos != _NO_TOKEN and tokens[:1] != [self._bos]:
            tokens.insert(0, self._bos)
        return tokens

    def begin(self, slot: int, parameters: Parameters) -> None:
        """The slot's next tokens are drawn by these parameters."""
        chain = native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())
        if parameters.temperature == 0:
            native.llama_sampler_chain_add(chain, native.llama_sampler_init_greedy())
        else:
            native.llama_sampler_chain_add(chain, native.llama_sampler_init_top_k(parameters.top_k))
            native.llama_sampler_chain_add(chain, native.llama_sampler_init_top_p(parameters.top_p, 1))
            native.llama_sampler_chain_add(chain, native.llama_sampler_init_temp(parameters.temperature))
        self._samplers[slot] = chain
        self._parameters[slot] = parameters

    def end(self, slot: int) -> None:
        """Forget the slot's tokens. Safe to call twice."""
        chain = self._samplers.pop(slot, None)
        if chain is not None:
            native.llama_sampler_free(chain)
            native.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def run(self, feeds: list[Feed]) -> list[int | None]:
        """Compute one step; for each feed the token sampled behind it, if it asks for one. Raises ModelCrashed: what is
        in the model's memory after a failed decode is unknown, so the process has to start anew."""
        batch, count = self._batch, 0
        rows = []
        for feed in feeds:
            for offset, token in enumerate(feed.tokens):
                batch.token[count], batch.pos[count], batch.n_seq_id[count] = token, feed.start + offset, 1
                batch.seq_id[count][0], batch.logits[count] = feed.slot, 0
                count += 1
            batch.logits[count - 1] = feed.sample
            rows.append(count - 1)
        batch.n_tokens = count
        if (status := native.llama_decode(self._context, batch)) != 0:
            raise errors.ModelCrashed(f"llama_decode gave {status}: {self._log.why()}")
        return [self._sample(feed, row) if feed.sample else None for feed, row in zip(feeds, rows, strict=True)]

    def piece(self, token: int) -> bytes | None:
        """The bytes of a token; None for one that ends the answer."""
        if native.llama_vocab_is_eog(self._vocab, token):
            return None
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = native.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    def free(self) -> None:
        for slot in list(self._samplers):
            self.end(slot)
        native.llama_batch_free(self._batch)

    def _sample(self, feed: Feed, row: int) -> int:
        chain, parameters = self._samplers[feed.slot], self._parameters[feed.slot]
        if parameters.temperature == 0:
            return int(native.llama_sampler_sample(chain, self._context, row))
        position = feed.start + len(feed.tokens)
        native.llama_sampler_chain_add(chain, native.llama_sampler_init_dist(sampling.mix(parameters.seed, position)))
        token = int(native.llama_sampler_sample(chain, self._context, row))
        native.llama_sampler_free(native.llama_sampler_chain_remove(chain, native.llama_sampler_chain_n(chain) - 1))
        return token

    def _tokenize(self, part: str) -> list[int]:
        raw = part.encode("utf-8", "replace")
        room = len(raw) + 8
        tokens = (native.llama_token * room)()
        count = native.llama_tokenize(self._vocab, raw, len(raw), tokens, room, False, True)
        if count < 0:
            raise errors.BadRequest("the model's tokenizer cannot read this prompt")
        return tokens[:count]

    def _special_spellings(self) -> Iterator[str]:
        for token in range(native.llama_vocab_n_tokens(self._vocab)):
            if native.llama_vocab_get_attr(self._vocab, token) & _SPECIAL:
                yield native.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace")

    def _chat_template(self) -> prompt.ChatTemplate | None:
        source = native.llama_model_chat_template(self._model, None)
        if source is None:
            return None
        try:
            template = prompt.ChatTemplate(
                source.decode("utf-8", "replace"),
                bos=self._spelling(native.llama_vocab_bos(self._vocab)),
                eos=self._spelling(native.llama_vocab_eos(self._vocab)),
            )
            template.render((ChatMessage("user", "hello"),))
        except (jinja2.TemplateError, errors.BadRequest) as error:
            raise LoadRefused(f"the model's chat template is not usable: {error}") from error
        return template

    def _spelling(self, token: int) -> str:
        return "" if token == _NO_TOKEN else native.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace")


@contextmanager
def opened(load: Load) -> Iterator[LlamaModel]:
    """Load a model and make its context; raises LoadRefused."""
    log = NativeLog()
    callback = native.llama_log_callback(log.take)
    native.llama_log_set(callback, ctypes.c_void_p(0))
    native.llama_backend_init()
    try:
        with _loaded(load, log) as (model, context):
            opened_model = LlamaModel(model, context, load, log)
            try:
                yield opened_model
            finally:
                opened_model.free()
    finally:
        # The callback object must outlive every native call that may log.
        native.llama_log_set(native.llama_log_callback(0), ctypes.c_void_p(0))


@contextmanager
def _loaded(load: Load, log: NativeLog) -> Iterator[tuple[native.llama_model_p, native.llama_context_p]]:
    parameters = native.llama_model_default_params()
    parameters.n_gpu_layers = load.gpu_layers
    model = native.llama_model_load_from_file(load.path.encode(), parameters)
    if not model:
        raise LoadRefused(f"llama.cpp cannot load {load.path}: {log.why()}")
    try:
        trained = native.llama_model_n_ctx_train(model)
        context = native.llama_init_from_model(model, _context_parameters(load, trained))
        if not context:
            raise LoadRefused(f"no memory for {load.slots} slots of {_per_slot(load, trained)} tokens: {log.why()}")
        try:
            yield model, context
        finally:
            native.llama_free(context)
    finally:
        native.llama_model_free(model)


def _per_slot(load: Load, trained: int) -> int:
    return min(load.context_tokens or DEFAULT_CONTEXT_TOKENS, trained)


def _context_parameters(load: Load, trained: int) -> native.llama_context_params:
    parameters: native.llama_context_params = native.llama_context_default_params()
    parameters.n_ctx = _per_slot(load, trained) * load.slots
    parameters.n_batch = parameters.n_ubatch = max(CHUNK_TOKENS, load.slots)
    parameters.n_seq_max = load.slots
    parameters.n_threads = parameters.n_threads_batch = load.threads
    # One KV stream per sequence: the same seed gives the same tokens alone and in any batch (DESIGN.md section 5, `exact`).
    parameters.kv_unified = False
    return parameters
