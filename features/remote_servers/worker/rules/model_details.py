"""Reads what servers say of a model beside the list of their API: its context and what it can do. Pure. The readers raise one of
`event_stream.UNREADABLE`."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import msgspec

from features.remote_servers.worker.rules.event_stream import convert_or
from shared.gguf.gguf_header import MAX_CONTEXT_TOKENS
from shared.types import Ability


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDetails:
    #: 0 if it doesn't say.
    context_tokens: int = 0
    #: Empty if it doesn't say.
    abilities: tuple[Ability, ...] = ()
    only_embeds: bool = False
    #: Made on that machine from another model or a file, and not pulled: its name says little about what it is.
    is_made_there: bool = False
    #: As the server writes it, such as Q4_K_M.
    quantization: str = ""


@dataclass(frozen=True, slots=True)
class DetailsPage:
    """A page about all models: the server's name of each, or None for the only one."""

    path: str
    read: Callable[[bytes], Mapping[str | None, ModelDetails]]


@dataclass(frozen=True, slots=True)
class ModelPage:
    """What one model is asked for with a POST of its name. It loads no model."""

    path: str
    read: Callable[[bytes], ModelDetails]


#: Ollama's words for what a model can do; older versions name the last two among the families of a model that sees images.
_OLLAMA_WORDS = {Ability.TOOLS: ("tools",), Ability.REASONING: ("thinking",), Ability.IMAGES: ("vision", "clip", "mllama")}
_NO_WORDS: tuple[str, ...] = ()
_OLLAMA_CONTEXT = re.compile(r"^num_ctx\s+(\d{1,9})\s*$", re.MULTILINE)


def which(found: Mapping[Ability, bool]) -> tuple[Ability, ...]:
    """Return those that it has."""
    return tuple(ability for ability, is_able in found.items() if is_able)


def in_ollamas_words(words: Collection[str]) -> tuple[Ability, ...]:
    return which({ability: any(name in words for name in names) for ability, names in _OLLAMA_WORDS.items()})


class _OllamaDetails(msgspec.Struct, frozen=True):
    parent_model: str = ""
    quantization_level: str = ""


class _OllamaShown(msgspec.Struct, frozen=True):
    capabilities: object = None
    details: object = None
    parameters: object = None
    model_info: object = None


def read_ollama_model(page: bytes) -> ModelDetails:
    """Its context is the one that its owner set: Ollama's default depends on the machine, and is known once the model is loaded."""
    shown = msgspec.json.decode(page, type=_OllamaShown)
    words, details = convert_or(_NO_WORDS, shown.capabilities), convert_or(_OllamaDetails(), shown.details)
    chosen = _OLLAMA_CONTEXT.search(shown.parameters) if isinstance(shown.parameters, str) else None
    return ModelDetails(
        context_tokens=_tokens(int(chosen[1])) if chosen else 0,
        abilities=in_ollamas_words(words),
        only_embeds="embedding" in words and "completion" not in words,
        is_made_there=bool(details.parent_model),
        quantization=details.quantization_level[:_MAX_WORD],
    )


class _OllamaLoaded(msgspec.Struct, frozen=True):
    name: str
    context_length: object = None


class _OllamaLoadedModels(msgspec.Struct, frozen=True):
    models: tuple[_OllamaLoaded, ...] = ()


def read_ollama_loaded(page: bytes) -> Mapping[str | None, ModelDetails]:
    loaded = msgspec.json.decode(page, type=_OllamaLoadedModels).models
    return {each.name: ModelDetails(context_tokens=_tokens(each.context_length)) for each in loaded}


class _StudioModel(msgspec.Struct, frozen=True):
    id: str
    type: object = None
    quantization: object = None
    capabilities: object = None
    loaded_context_length: object = None
    max_context_length: object = None


class _StudioModels(msgspec.Struct, frozen=True):
    data: tuple[_StudioModel, ...]


def read_studio_models(page: bytes) -> Mapping[str | None, ModelDetails]:
    """LM Studio loads a model with the context that its owner chose for it, which the page has once it is loaded."""
    return {each.id: _of_studio(each) for each in msgspec.json.decode(page, type=_StudioModels).data}


def _of_studio(model: _StudioModel) -> ModelDetails:
    words, kind = convert_or(_NO_WORDS, model.capabilities), model.type
    return ModelDetails(
        context_tokens=_tokens(model.loaded_context_length),
        abilities=which({Ability.TOOLS: "tool_use" in words, Ability.IMAGES: kind == "vlm"}),
        only_embeds=kind == "embeddings",
        quantization=model.quantization[:_MAX_WORD] if isinstance(model.quantization, str) else "",
    )


class _LlamaSettings(msgspec.Struct, frozen=True):
    n_ctx: object = None


class _LlamaModalities(msgspec.Struct, frozen=True):
    vision: bool = False


class _LlamaCaps(msgspec.Struct, frozen=True):
    supports_tools: bool = False


class _LlamaProps(msgspec.Struct, frozen=True):
    default_generation_settings: object = None
    modalities: object = None
    chat_template_caps: object = None


def read_llama_props(page: bytes) -> Mapping[str | None, ModelDetails]:
    """The context is that of one slot."""
    props = msgspec.json.decode(page, type=_LlamaProps)
    context = convert_or(_LlamaSettings(), props.default_generation_settings).n_ctx
    found = {
        Ability.TOOLS: convert_or(_LlamaCaps(), props.chat_template_caps).supports_tools,
        Ability.IMAGES: convert_or(_LlamaModalities(), props.modalities).vision,
    }
    return {None: ModelDetails(context_tokens=_tokens(context), abilities=which(found))}


_MAX_WORD = 32


def _tokens(value: object) -> int:
    return value if isinstance(value, int) and 0 < value <= MAX_CONTEXT_TOKENS else 0
