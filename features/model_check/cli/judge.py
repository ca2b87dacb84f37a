"""Judges what a model has answered to a script. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from features.model_check.cli.scripts import Call, Script


@dataclass(frozen=True, slots=True)
class Answer:
    text: str = ""
    #: Names, and arguments as the model wrote them.
    calls: tuple[tuple[str, str], ...] = ()


def find_fault(script: Script, answer: Answer) -> str:
    """Return why an answer is wrong; empty if it is right."""
    if not script.right and not answer.calls:
        return "" if answer.text.strip() and script.says in answer.text else f"the answer is {answer.text[:60]!r}"
    if not answer.calls:
        return f"text instead of a call: {answer.text[:60]!r}"
    missing = [*script.right]
    for name, written in answer.calls:
        try:
            arguments = msgspec.json.decode(written or "{}", type=dict[str, object])
        except (msgspec.DecodeError, UnicodeError):
            return f"the arguments of {name} are no JSON object: {written[:60]!r}"
        faults = {_compare(call, name, arguments): call for call in reversed(missing)}
        if "" not in faults:
            return next(reversed(faults), f"{name} is one call too many")
        missing.remove(faults[""])
    return f"{missing[0].name} is not called" if missing else ""


def _compare(wanted: Call, name: str, arguments: Mapping[str, object]) -> str:
    if wanted.name != name:
        return f"{name} instead of {wanted.name}"
    if unlike := wanted.arguments.keys() ^ arguments.keys():
        return f"{name}: {min(unlike)} is {'missing' if min(unlike) in wanted.arguments else 'too much'}"
    for key, value in wanted.arguments.items():
        if not _is_same(value, arguments[key]):
            return f"{name}: {key} is {_show(arguments[key])} instead of {_show(value)}"
    return ""


def _is_same(wanted: object, given: object) -> bool:
    match wanted, given:
        case tuple(), _:
            return any(_is_same(one, given) for one in wanted)
        case dict(), dict():
            return wanted.keys() == given.keys() and all(_is_same(wanted[key], given[key]) for key in wanted)
        case list(), list():
            return len(wanted) == len(given) and all(map(_is_same, wanted, given))
    # In Python, True is 1.
    return wanted == given and isinstance(wanted, bool) == isinstance(given, bool)


def _show(value: object) -> str:
    shown = value[0] if isinstance(value, Sequence) and not isinstance(value, str | list) else value
    return msgspec.json.encode(shown).decode()[:60]
