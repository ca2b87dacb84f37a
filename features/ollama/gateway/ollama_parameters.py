"""The fields of Ollama's bodies that have no field here. Pure; see ``services.gateway.http_api.parameters``."""

from services.gateway.http_api.parameters import COPIED, OTHER_TOOLS, Rules, ignored, only

_ENGINE_OPTIONS = (
    "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "numa", "low_vram", "f16_kv", "use_mmap", "use_mlock",
    "logits_all", "vocab_only", "embedding_only",
)  # fmt: skip
_SAMPLERS = ("tfs_z", "typical_p", "repeat_last_n", "mirostat", "mirostat_tau", "mirostat_eta", "penalize_newline")

#: Common to all bodies.
COMMON: Rules = {
    "keep_alive": ignored("the mesh decides how long a model stays loaded"),
    "truncate": ignored("an input that is too long is refused; shorten it yourself"),
    "shift": ignored("an input that is too long is refused; shorten it yourself"),
    "verbose": ignored("a mesh doesn't show the files of its models"),
    "insecure": ignored("only administrators download models"),
    **dict.fromkeys((f"options.{name}" for name in _ENGINE_OPTIONS), ignored("the mesh decides how a model is loaded")),
    **dict.fromkeys((f"options.{name}" for name in _SAMPLERS), ignored("there is no such sampler")),
}
CHAT: Rules = {
    **COMMON,
    "messages.tool_calls.type": COPIED,
    "messages.tool_calls.index": COPIED,
    "messages.tool_calls.function.index": COPIED,
    "messages.tool_calls.function.description": COPIED,
    "tools[*]": OTHER_TOOLS,
}
GENERATE: Rules = {
    **COMMON,
    "context": only("is not supported; send the whole conversation to /api/chat", []),
    "template": only("is not supported; models have templates of their own, or send `raw`", ""),
    **dict.fromkeys(("width", "height", "steps"), ignored("models only generate text")),
}
