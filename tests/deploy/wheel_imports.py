"""Find what the modules of wheels import, without running them: also inside functions, and modules that the code names as text."""

import zipfile
from collections.abc import Collection, Iterable, Iterator
from modulefinder import ModuleFinder
from pathlib import Path
from types import CodeType

#: A package runs as `python -m services.inference`.
_MAIN = "__main__"


def unpack(wheels: Iterable[Path], into: Path) -> Path:
    """Unpack wheels into one folder, as an installation does."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into)
    return into


def modules_of(site: Path) -> set[str]:
    """Return the names of all modules in a folder."""
    return {".".join(path.relative_to(site).with_suffix("").parts).removesuffix(".__init__") for path in site.rglob("*.py")}


def find_missing(site: Path, begin: Iterable[str], *, without: Collection[str] = ()) -> dict[str, set[str]]:
    """Return the modules that are not in the folder, with those that import them: whole names of ours, others without their submodules.

    It begins with the modules ``begin``, and leaves out those of ``without``.
    """
    ours = modules_of(site)
    finder = ModuleFinder([str(site)], excludes=[*without])
    waiting, read = set(begin), set[str]()
    while waiting:
        for name in waiting:
            finder.import_hook(name)
        read |= waiting
        named = {name for module in finder.modules.values() if module.__code__ for name in _texts(module.__code__)}
        waiting = _runnable(named, ours) - read - set(without)
    missing = dict[str, set[str]]()
    for name in finder.any_missing():
        top = name.partition(".")[0]
        missing.setdefault(name if top in {each.partition(".")[0] for each in ours} else top, set()).update(finder.badmodules[name])
    return missing


def _runnable(texts: set[str], ours: set[str]) -> set[str]:
    """Return the modules that texts name, such as `services.inference` of `python -m` and `cli.ask.infer:infer` of a table."""
    named = {text.partition(":")[0] for text in texts if "." in text}
    return (named & ours) | {f"{name}.{_MAIN}" for name in named if f"{name}.{_MAIN}" in ours}


def _texts(code: CodeType) -> Iterator[str]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _texts(constant)
        else:
            yield from (each for each in (constant if isinstance(constant, tuple) else (constant,)) if isinstance(each, str))
