"""What is said of the servers of a machine, and what becomes of an answer. Pure."""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from features.front.rules import local_servers
from features.front.rules.local_servers import LocalModel, LocalServer, SharedServer
from features.front.rules.sharing import MAX_SHOWN, count, printable, shown
from shared import errors

ALL = "all"


def text_of(servers: Sequence[LocalServer]) -> Iterator[str]:
    """Yield the lines that a person reads before the question."""
    for server in servers:
        if not server.models:
            yield f"{server.title} runs here, but {_why_nothing(server)}."
            continue
        offered = offered_models(server)
        yield f"{server.title} runs here, with {count(len(offered), 'model')} to share:"
        width = max((len(shown(model)) for model in offered), default=0)
        yield from (f"  {shown(model):<{width}}  {_facts(model)}".rstrip() for model in offered[:MAX_SHOWN])
        if len(offered) > MAX_SHOWN:
            yield f"  … and {len(offered) - MAX_SHOWN} more"
        if outside := [model for model in server.models if model.is_shared_by_name]:
            names = ", ".join(shown(model) for model in outside[:MAX_SHOWN])
            yield f"Not shared unless you name them, because {server.title} sends their prompts elsewhere: {names}"
        if server.is_open_to_others:
            yield warning_of(server)


def warning_of(server: LocalServer) -> str:
    """Return what to do about a server that is open to others."""
    return f"Warning: {server.title} answers everybody in your network, without a key. {_MENDS[server.kind]}"


def offered_models(server: LocalServer) -> list[LocalModel]:
    """Return what the first question shares."""
    return [model for model in server.models if not model.is_shared_by_name and not model.is_asked_for]


def asked_models(server: LocalServer) -> list[LocalModel]:
    """Return the models that are asked for one by one."""
    return [model for model in server.models if model.is_asked_for]


def question_about(model: LocalModel) -> str:
    what = "an embedding model" if model.only_embeds else "which was made on this machine"
    return f"Also share {shown(model)}, {what}? [y/N] "


def shared(server: LocalServer, names: Iterable[str]) -> SharedServer | None:
    chosen = tuple(names)
    return SharedServer(kind=server.kind, url=server.url, models=chosen) if chosen else None


def of_words(words: Sequence[str], servers: Sequence[LocalServer]) -> list[SharedServer]:
    """Return what ``--share`` names: all, a program (ollama), or one of its models (ollama/qwen3:8b). Raises BadRequest."""
    found: dict[str, list[str]] = {}
    for word in words:
        kind, _, name = word.partition("/")
        matching = [server for server in servers if word == ALL or server.kind == kind]
        if not matching:
            here = ", ".join(server.kind for server in servers) or "none is running"
            raise errors.BadRequest(f"--share {word}: there is no such server on this machine", hint=f"servers that were found: {here}")
        for server in matching:
            named = [model.name for model in server.models if name in {model.name, local_servers.offered_name(model.name)}]
            if name and not named:
                some = ", ".join(shown(model) for model in server.models[:MAX_SHOWN])
                raise errors.BadRequest(f"--share {word}: {server.title} has no such model", hint=f"its models: {some}")
            found.setdefault(server.kind, []).extend(named if name else [model.name for model in offered_models(server)])
    by_kind = {server.kind: server for server in servers}
    return [one for kind, names in found.items() if (one := shared(by_kind[kind], dict.fromkeys(names))) is not None]


def without(before: Sequence[SharedServer], words: Iterable[str]) -> list[SharedServer]:
    """Return what is left without what ``--unshare`` names. Raises BadRequest."""
    left = list(before)
    for word in words:
        kind, _, name = word.partition("/")
        kept = [_without(server, name) if word == ALL or server.kind == kind else server for server in left]
        if kept == left:
            shared_now = ", ".join(f"{each.kind}/{local_servers.offered_name(model)}" for each in left for model in each.models[:MAX_SHOWN])
            raise errors.BadRequest(f"--unshare {word}: that is not shared", hint=f"what is: {shared_now or 'nothing'}")
        left = [server for server in kept if server.models]
    return left


def _without(server: SharedServer, name: str) -> SharedServer:
    kept = tuple(model for model in server.models if name and name not in {model, local_servers.offered_name(model)})
    return msgspec.structs.replace(server, models=kept)


def merged(before: Sequence[SharedServer], more: Sequence[SharedServer]) -> list[SharedServer]:
    """Return what is shared with what was chosen now; a server's models add up."""
    found = {each.kind: each for each in before}
    for each in more:
        old = found.get(each.kind)
        models = dict.fromkeys((*(() if old is None else old.models), *each.models))
        found[each.kind] = SharedServer(kind=each.kind, url=each.url, models=tuple(models))
    return list(found.values())


def _facts(model: LocalModel) -> str:
    size = f"{model.size_bytes / 10**9:.1f} GB" if model.size_bytes else ""
    context = f"context {model.context_tokens:,}" if model.context_tokens else ""
    return ", ".join(filter(None, (size, printable(model.quantization), context, *map(str, model.abilities))))


def _why_nothing(server: LocalServer) -> str:
    if server.needs_key:
        return f"it asks for a key: aicli worker --share {server.kind} --server-key-file {server.kind}=FILE"
    return printable(server.trouble) or "has no models"


_MENDS = {
    "ollama": "Start it with OLLAMA_HOST=127.0.0.1.",
    "lm_studio": "Turn off “Serve on Local Network” in its settings.",
    "llama_cpp": "Start it with --host 127.0.0.1.",
    "mlx": "Start it with --host 127.0.0.1.",
    "vllm": "Start it with --host 127.0.0.1, or with --api-key.",
    "sglang": "Start it with --host 127.0.0.1, or with --api-key.",
}
assert set(_MENDS) == {program.kind for program in local_servers.PROGRAMS}
