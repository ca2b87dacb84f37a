"""Every kind of rate limit, once. The types, counters, options, columns and words of limits are made from ``LIMITS``."""

import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeVar

import msgspec

from shared.types import Tier

_PERIODS = {60: ("minute", "min"), 3600: ("hour", "h"), 86_400: ("day", "day"), 30 * 86_400: ("month", "month")}

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class LimitKind:
    #: Everywhere: on the wire, in documents, settings and counters.
    name: str
    #: window: the last ``seconds``, in 60 buckets; rate: GCRA, which refills evenly; slots: what runs at once.
    counter: Literal["window", "rate", "slots"]
    cost: Literal["request", "token", "image"]
    seconds: int = 0
    #: What a request has not used is returned when it ends.
    is_held: bool = False
    #: The group of rate limit headers that shows it; None for none.
    header: Literal["requests", "tokens"] | None = None
    #: Tiers without a default have no limit.
    defaults: Mapping[Tier, int] = field(default_factory=dict)
    #: Added to the words in the help.
    about: str = ""

    @property
    def words(self) -> str:
        """Return the words for errors and tables, after a number."""
        return f"{self.cost}s per {_PERIODS[self.seconds][0]}" if self.seconds else f"concurrent {self.cost}s"

    @property
    def label(self) -> str:
        return self.words.capitalize()

    @property
    def short(self) -> str:
        """Return the words for lists of several limits."""
        unit = "" if self.cost == "request" else f" {self.cost}s"
        return f"{unit}/{_PERIODS[self.seconds][1]}" if self.seconds else f"{unit} concurrent"

    def of(self, values: object) -> int | None:
        """Return this limit in any type of limits; None if there is none."""
        found: int | None = getattr(values, self.name)
        return found


LIMITS = (
    LimitKind("requests_per_hour", "window", "request", 3600, header="requests", defaults={Tier.FREE: 100, Tier.PRO: 1_000}),
    LimitKind("requests_per_minute", "rate", "request", 60, header="requests", defaults={Tier.FREE: 10, Tier.PRO: 100}),
    LimitKind("tokens_per_minute", "rate", "token", 60, is_held=True, header="tokens", about=", input and output combined"),
    LimitKind("tokens_per_day", "window", "token", 86_400, is_held=True, header="tokens", about=", input and output combined"),
    LimitKind(
        "tokens_per_month", "window", "token", 30 * 86_400, is_held=True, header="tokens", about=" of 30 days, input and output combined"
    ),
    LimitKind("images_per_day", "window", "image", 86_400, about=", in prompts"),
    LimitKind("concurrency", "slots", "request", is_held=True, defaults={Tier.FREE: 10, Tier.PRO: 100}),
)
BY_NAME: Mapping[str, LimitKind] = {kind.name: kind for kind in LIMITS}

#: The range of a key's limits.
OfKey = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


def words(name: str) -> str:
    """Return the words of a kind, or of one that this version doesn't know."""
    return BY_NAME[name].words if name in BY_NAME else name.replace("_", " ")


def in_words(values: object) -> list[str]:
    """Return `1,000/h`, `500 tokens/min`, `2 concurrent`."""
    return [f"{number:,}{kind.short}" for kind in LIMITS if (number := kind.of(values)) is not None]


def fields(of: object, *, after: str = "", default: object = None) -> Callable[[type[T]], type[T]]:
    """Give a struct, or a class before it becomes a dataclass, a field of this type for each kind, ``after`` one of its own or first.

    Code asks by kind (``LimitKind.of``); nothing names these fields.
    """
    made = {kind.name: Annotated[of, msgspec.Meta(description=f"{kind.label}{kind.about}.")] for kind in LIMITS}

    def insert(cls: type[T]) -> type[T]:
        if not issubclass(cls, msgspec.Struct):
            cls.__annotations__ = dict.fromkeys(made, of) | cls.__annotations__
            for name in made:
                setattr(cls, name, default)
            return cls
        hints, own = typing.get_type_hints(cls, include_extras=True), msgspec.structs.fields(cls)
        listed = [
            (each.name, hints[each.name], msgspec.field(default=each.default, default_factory=each.default_factory))  # type: ignore[call-overload]
            for each in own
        ]
        at = cls.__struct_fields__.index(after) + 1 if after else 0
        listed[at:at] = [(name, kind, msgspec.field(default=default)) for name, kind in made.items()]
        taken = {"__slots__", "__match_args__", "__annotations__", "__weakref__", "__dict__", *cls.__struct_fields__}
        namespace = {name: value for name, value in vars(cls).items() if name not in taken and not name.startswith("__struct")}
        config = {name: getattr(cls.__struct_config__, name) for name in ("frozen", "omit_defaults", "forbid_unknown_fields", "cache_hash")}
        return msgspec.defstruct(  # type: ignore[return-value]
            cls.__name__, listed, bases=cls.__bases__, module=cls.__module__, namespace=namespace, **config
        )

    return insert
