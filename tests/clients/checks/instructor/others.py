"""Hooks, kinds of response models, images, validators, and ways to make a client."""

import enum
from functools import partial
from typing import Annotated, Any, Literal

import anthropic
import instructor
import openai
from checklist import error_of
from instructor import CitationMixin, Maybe, Mode
from instructor.core.hooks import HookName, Hooks
from instructor.processing.multimodal import PDF, Audio, Image

from checks.instructor.client import ANN, BOB, SCRIPTED, TOOLS, Asker, City, Person, checks, ensure_same, script

CLAUDE = Asker("anthropic", Mode.ANTHROPIC_TOOLS)
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="

# --- hooks ------------------------------------------------------------------------------------------------------------------------


def _is_emitted(name: HookName, *, fails: bool = False, last: bool = False) -> None:
    seen: list[Any] = []
    client = TOOLS.client
    client.on(name, lambda *arguments, **_: seen.append(arguments))
    bad = TOOLS.turn(City(city="Rome"), "Person")
    messages = [{"role": "user", "content": script(turns=[bad, bad if last else TOOLS.turn(ANN)])}]
    arguments = {**TOOLS.asked(ANN), "max_retries": 2, **({"messages": messages} if fails else {})}
    if last:
        error_of(Exception, partial(client.create, **arguments))
    else:
        ensure_same([client.create(**arguments)], ANN)
    assert seen


checks.add("hook.completion:kwargs", partial(_is_emitted, HookName.COMPLETION_KWARGS))
checks.add("hook.completion:response", partial(_is_emitted, HookName.COMPLETION_RESPONSE))
checks.add("hook.completion:usage", partial(_is_emitted, HookName.COMPLETION_USAGE))
checks.add("hook.parse:error", partial(_is_emitted, HookName.PARSE_ERROR, fails=True))
checks.add("hook.completion:last_attempt", partial(_is_emitted, HookName.COMPLETION_LAST_ATTEMPT, fails=True, last=True))


@checks("hook.completion:error")
def _() -> None:
    seen: list[Any] = []
    client = TOOLS.client
    client.on("completion:error", lambda error, **_: seen.append(error))
    error_of(Exception, partial(client.create, **TOOLS.asked(ANN, model="gpt-9")))
    assert "gpt-9" in str(seen[0])


@checks("Instructor.on()", "Instructor.off()", "Instructor.clear()", "create.hooks")
def _() -> None:
    seen: list[Any] = []
    client = TOOLS.client
    hooks = Hooks()
    hooks.on("completion:response", seen.append)
    client.on("completion:response", seen.append)
    client.create(**TOOLS.asked(ANN), hooks=hooks)
    assert len(seen) == 2
    client.off("completion:response", seen.append)
    client.clear()
    client.create(**TOOLS.asked(ANN))
    assert len(seen) == 2


checks.ensure_named("hook", [name.value for name in HookName])

# --- response models --------------------------------------------------------------------------------------------------------------


@checks("create.messages", "create.max_retries", "create.response_model")
def _() -> None:
    ensure_same([TOOLS.client.create(**TOOLS.asked(ANN))], ANN)


@checks("Maybe")
def _() -> None:
    maybe = Maybe(Person)
    found = TOOLS.client.create(**TOOLS.asked(maybe(result=ANN), name=maybe.__name__, response_model=maybe))
    ensure_same([found.result], ANN)
    none = TOOLS.client.create(**TOOLS.asked(maybe(error=True, message="nobody"), name=maybe.__name__, response_model=maybe))
    assert (none.result, none.message) == (None, "nobody")


def _simple(kind: Any, value: Any, name: str) -> None:
    messages = [{"role": "user", "content": script(calls=[["Response", {"content": value}]])}]
    found = TOOLS.client.create(**{**TOOLS.asked(ANN), "messages": messages, "response_model": kind})
    assert found in (value, getattr(kind, "__members__", {}).get(value)), name


class Color(enum.Enum):
    RED = "RED"


SIMPLE: dict[str, tuple[Any, Any]] = {
    "int": (int, 5),
    "bool": (bool, True),
    "str": (str, "five"),
    "Literal": (Literal["RED", "BLUE"], "RED"),
    "Enum": (Color, "RED"),
    "Annotated": (Annotated[int, "the age"], 5),
}
for name, (kind, value) in SIMPLE.items():
    checks.add(f"response_model={name}", partial(_simple, kind, value, name))


@checks("response_model=list")
def _() -> None:
    many = instructor.IterableModel(Person)
    ensure_same(TOOLS.client.create(**TOOLS.asked(many(tasks=[ANN, BOB]), name=many.__name__, response_model=list[Person])), ANN, BOB)


@checks("response_model=None")
def _() -> None:
    arguments = {**TOOLS.asked(ANN), "messages": [{"role": "user", "content": script(say="Hello.")}], "response_model": None}
    assert TOOLS.client.create(**arguments).choices[0].message.content == "Hello."


class Fact(CitationMixin):
    fact: str


@checks("CitationMixin", "create.context", "templates")
def _() -> None:
    turn = {"calls": [["Fact", {"fact": "it rains", "substring_quotes": ["it rains"]}]]}
    messages = [{"role": "user", "content": script(**turn) + " {{ context }}"}]
    text = "today it rains in Rome"
    found = TOOLS.client.create(**{**TOOLS.asked(ANN), "messages": messages, "response_model": Fact, "context": {"context": text}})
    assert found.substring_quotes == ["it rains"]


@checks("Partial")
def _() -> None:
    arguments = {**TOOLS.asked(ANN, name="PartialPerson"), "response_model": instructor.Partial[Person], "stream": True}
    *_, last = TOOLS.client.create(**arguments)
    assert last.age == ANN.age


@checks("create.strict")
def _() -> None:
    ensure_same([TOOLS.client.create(**TOOLS.asked(ANN), strict=False)], ANN)


@checks("create.token_budget")
def _() -> None:
    ensure_same([TOOLS.client.create(**TOOLS.asked(ANN), token_budget=100_000)], ANN)


# --- media ------------------------------------------------------------------------------------------------------------------------


def _shows(asker: Asker, media: Any) -> None:
    arguments = asker.asked(ANN)
    arguments["messages"][0]["content"] = [arguments["messages"][0]["content"], media]
    ensure_same([asker.client.create(**arguments)], ANN)


image = Image.from_raw_base64(PNG)
for asker in (TOOLS, CLAUDE, Asker("openai", Mode.RESPONSES_TOOLS)):
    checks.add(f"{asker.name}: Image", partial(_shows, asker, image))


def _is_refused(asker: Asker, media: Any, sentence: str) -> None:
    error = error_of(Exception, partial(_shows, asker, media))
    assert sentence in str(error), error


URL = Image(source="https://a.example/a.png", media_type="image/png", data=None)
SOUND = Audio(source="data:audio/wav;base64,AAAA", data="AAAA", media_type="audio/wav")
FILE = PDF(source="data:application/pdf;base64,AAAA", data="AAAA", media_type="application/pdf")
# For Anthropic, it fetches them itself.
checks.add("Image.from_url()", partial(_is_refused, TOOLS, URL, "is not a data URL"))
checks.add("Audio", partial(_is_refused, TOOLS, SOUND, "audio"))
checks.add("PDF", partial(_is_refused, TOOLS, FILE, "files are not supported"))
checks.add("anthropic: PDF", partial(_is_refused, CLAUDE, FILE, "is a PDF"))

# --- validators -------------------------------------------------------------------------------------------------------------------


@checks("llm_validator")
def _() -> None:
    def complete(**arguments: Any) -> Any:
        turn = {"role": "user", "content": script(calls=[["Validator", {"is_valid": False, "reason": "it is rude", "fixed_value": None}]])}
        return openai.OpenAI(max_retries=0).chat.completions.create(**{**arguments, "messages": [*arguments["messages"], turn]})

    validate = instructor.llm_validator("must be kind", client=instructor.from_litellm(complete), model=SCRIPTED)
    assert "it is rude" in str(error_of(ValueError, partial(validate, "hello")))


@checks("openai_moderation")
def _() -> None:
    validate = instructor.openai_moderation(openai.OpenAI(max_retries=0))
    assert validate("hello") == "hello"
    assert "violence" in str(error_of(ValueError, partial(validate, "I hurt you")))


# --- clients ------------------------------------------------------------------------------------------------------------------------


@checks("from_provider(openai)")
def _() -> None:
    client = instructor.from_provider(f"openai/{SCRIPTED}")
    arguments = TOOLS.asked(ANN)
    del arguments["model"]
    ensure_same([client.create(**arguments)], ANN)


@checks("from_provider(anthropic)")
def _() -> None:
    arguments = CLAUDE.asked(ANN)
    del arguments["model"]
    ensure_same([instructor.from_provider(f"anthropic/{SCRIPTED}").create(**arguments)], ANN)


@checks("from_provider(async_client=)")
async def _() -> None:
    client = instructor.from_provider(f"openai/{SCRIPTED}", async_client=True)
    arguments = TOOLS.asked(ANN)
    del arguments["model"]
    ensure_same([await client.create(**arguments)], ANN)
    await client.client.close()


@checks("from_anthropic(beta=)")
def _() -> None:
    client = instructor.from_anthropic(anthropic.Anthropic(max_retries=0), beta=True)
    ensure_same([client.create(**CLAUDE.asked(ANN))], ANN)


@checks("from_litellm")
def _() -> None:
    # LiteLLM has its own program; any function with its signature does.
    client = instructor.from_litellm(openai.OpenAI(max_retries=0).chat.completions.create)
    ensure_same([client.create(**TOOLS.asked(ANN))], ANN)


@checks("patch()")
def _() -> None:
    client = instructor.patch(openai.OpenAI(max_retries=0))
    ensure_same([client.chat.completions.create(**TOOLS.asked(ANN))], ANN)


@checks("apatch()")
async def _() -> None:
    async with openai.AsyncOpenAI(max_retries=0) as client:
        ensure_same([await instructor.apatch(client).chat.completions.create(**TOOLS.asked(ANN))], ANN)


@checks("Instructor.chat", "Instructor.completions", "Instructor.messages")
def _() -> None:
    ensure_same([TOOLS.client.chat.completions.create(**TOOLS.asked(ANN))], ANN)
    ensure_same([CLAUDE.client.messages.create(**CLAUDE.asked(ANN))], ANN)


@checks("response_schema")
def _() -> None:
    schema = instructor.response_schema(Person)
    assert schema.openai_schema["name"] == "Person"


@checks("Mode.FUNCTIONS")
def _() -> None:
    client = instructor.from_openai(openai.OpenAI(max_retries=0), mode=Mode.FUNCTIONS)
    ensure_same([client.create(**TOOLS.asked(ANN))], ANN)


REFUSED = {
    "URLs, PDF and audio": (
        "the gateway fetches no URLs, and models read text and images only",
        ["Image.from_url()", "Audio", "PDF", "anthropic: PDF"],
    ),
}
