"""Grammars for the calls of llama.cpp's vendored templates: a call is accepted only if it fits the tool's schema."""

import copy
import json
import re
from functools import cache

import pytest

from services.inference.chat import library, template_probe
from services.inference.chat.chat_messages import RenderedPrompt, RenderPrompt
from services.inference.structured_output import output_formats
from shared import errors
from shared.api.generation import Tool
from tests import tiers
from tests.services.inference.chat import vendored
from tests.services.inference.chat.test_template_probe import WITHOUT_CALLS
from tests.services.inference.structured_output.byte_answers import BYTES, END, fits, grammar_of

pytestmark = pytest.mark.skipif(not library.PATH.exists(), reason="libaimesh_chat was not built: python -m tools.engine_libraries")

Arguments = dict[str, object]

PLACE = {
    "type": "object",
    "properties": {"zip": {"type": "integer", "minimum": 1000, "maximum": 9999}, "kind": {"enum": ["home", "work"]}},
    "required": ["zip", "kind"],
}
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Rome", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "place": PLACE,
        "note": {"type": "string", "maxLength": 12},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "hours": {"type": "number", "minimum": 0.5},
    },
    "required": ["city", "days", "place"],
}
OTHER = Tool("get_time", "Says the time.", '{"type": "object", "properties": {"zone": {"type": "string"}}}')
WEATHER = Tool("get_weather", "Says the weather.", json.dumps(PARAMETERS))
GOOD: Arguments = {"city": "Oslo", "days": 3, "place": {"zip": 1234, "kind": "work"}}
MORE: Arguments = {**GOOD, "note": "a <b> &c", "hours": 1.5}
USER: dict[str, object] = {"role": "user", "content": "What is the weather?"}


def changed(**arguments: object) -> Arguments:
    return {**copy.deepcopy(GOOD), **arguments}


#: Keyed by the mistake.
WRONG = {
    "enum": changed(city="city"),
    "empty enum": changed(city=""),
    "below the minimum": changed(days=0),
    "above the maximum": changed(days=10),
    "no integer": changed(days=3.5),
    "another type": changed(days="three"),
    "nested bound": changed(place={"zip": 12, "kind": "work"}),
    "nested enum": changed(place={"zip": 1234, "kind": "elsewhere"}),
    "nested required": changed(place={"zip": 1234}),
    "no object": changed(place="Oslo"),
    "required": {"city": "Oslo", "place": GOOD["place"]},
    "optional enum": changed(unit="K"),
    "optional bound": changed(hours=0.25),
    "long text": changed(note="a" * 13),
    "unknown": changed(more=1),
}


def as_models_write(name: str, text: str, arguments: Arguments | None = None) -> str:
    """Change what some templates write, mostly Python literals, to what models write and llama.cpp reads."""
    match name:
        case "ByteDance-Seed-OSS" | "LFM2.5-8B-A1B":
            return text.replace("'", '"')
        case "CohereForAI-c4ai-command-r-plus-tool_use":
            return re.sub(r"\n +", "", text)
        case "openbmb-MiniCPM5-1B" if arguments is not None:
            return text.replace('name="place"></', f'name="place">{json.dumps(arguments["place"])}</')
        case _:
            return text


class Written:
    """The calls that a template writes, and their grammar."""

    def __init__(self, name: str) -> None:
        self.template = vendored.library().open(vendored.request_of(PATHS[name]))
        self.name = name
        self.tools: tuple[dict[str, object], ...] = tuple(
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters)},
            }
            for tool in (OTHER, WEATHER)
        )
        self.asked: RenderedPrompt = self.template.render(RenderPrompt((USER,), self.tools, thinking=False))
        #: Index into `template_probe.cuts`: where answers begin.
        self.cut: int | None = None
        self.grammar = output_formats.grammar_of_calls(self.asked.parser, (OTHER, WEATHER), None, parallel=True, strict=True)

    def call(self, arguments: Arguments) -> str:
        """Return the call as the model should write it, and what may follow it."""
        function = {"name": WEATHER.name, "arguments": json.dumps(arguments)}
        call = {"type": "function", "id": template_probe.SHORT_ID, "function": function}
        said: dict[str, object] = {"role": "assistant", "content": "", "tool_calls": [call]}
        answered = self.template.render(RenderPrompt((USER, said), self.tools, thinking=False, answer=False)).prompt
        answers = list(template_probe.cuts(self.asked, answered))
        if self.cut is None:
            self.cut = next((index for index, answer in enumerate(answers) if self.read(answer)), None)
            assert self.cut is not None, answers
        text = self.from_trigger(answers[self.cut])
        return as_models_write(self.name, text, arguments)

    def read(self, answer: str) -> bool:
        return bool(template_probe._longest(vendored.library(), self.asked.parser, answer).calls)

    def from_trigger(self, answer: str) -> str:
        for trigger in self.asked.triggers:
            found = re.search(trigger.value if trigger.kind.startswith("pattern") else re.escape(trigger.value), answer)
            if found is not None:
                return answer[found.start(1 if found.re.groups else 0) :]
        return answer


@cache
def written(name: str) -> Written:
    return Written(name)


def begins_with_a_call(grammar: str, text: str) -> bool:
    """Return whether a prefix of the text satisfies the whole grammar."""
    constraint = BYTES.start(grammar)
    for token in text.encode():
        if constraint.allows(END):
            return True
        if not constraint.allows(token):
            return False
        constraint.accept(token)
    return constraint.allows(END)


PATHS = {path.stem: path for path in vendored.paths()}
NAMES = [name for name in PATHS if name not in WITHOUT_CALLS]


@pytest.mark.parametrize("name", tiers.by_day(NAMES, *NAMES[::3], group="long"))
def test_grammar_accepts_only_arguments_that_fit_the_schema(name: str) -> None:
    template = written(name)
    for right in (GOOD, MORE):
        text = template.call(right)
        assert begins_with_a_call(template.grammar, text), text
    # `make test` tries each mistake with every ninth template: rendering a call takes 30 ms.
    step = 1 if tiers.is_nightly() else 3
    for wrong, arguments in list(WRONG.items())[NAMES.index(name) // 3 % step :: step]:
        text = template.call(arguments)
        assert not begins_with_a_call(template.grammar, text), (wrong, text)


TREE = {"type": "object", "properties": {"n": {"type": "integer"}, "sub": {"$ref": "#/$defs/tree"}}, "required": ["n"]}
DEFINITIONS = {"tree": TREE, "size": {"enum": ["S", "L"]}}
#: For one argument: MiniMax-M2's valid and invalid texts, then Gemma's.
VALUES: dict[str, tuple[dict[str, object], list[str], list[str], list[str], list[str]]] = {
    "union with null": (
        {"anyOf": [{"enum": ["a", "b"]}, {"type": "null"}]},
        *(["a"], ["c", "", "null"], ['<|"|>b<|"|>', "null"], ['<|"|>c<|"|>', "a", "1"]),
    ),
    "list": (
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
        *(["[1]", "[1, 2]"], ["[]", "[1,2,3]", '["a"]'], ["[1]", "[1,2]"], ["[]", "[1,2,3]", '[<|"|>a<|"|>]']),
    ),
    "list of texts": (
        {"type": "array", "items": {"type": "string", "enum": ["a"]}},
        *(["[]", '["a","a","a"]'], ['["b"]'], ["[]", '[<|"|>a<|"|>,<|"|>a<|"|>]'], ['[<|"|>b<|"|>]']),
    ),
    "recursive": (
        {"$ref": "#/$defs/tree"},
        *(['{"n":1,"sub":{"n":2}}'], ['{"sub":{"n":2}}', '{"n":1,"sub":{}}'], ["{n:1,sub:{n:2}}"], ["{sub:{n:2}}", "{n:1,sub:{}}"]),
    ),
    "reference in a list of one": (
        {"allOf": [{"$ref": "#/$defs/size"}], "default": "S"},
        *(["S"], ["M"], ['<|"|>L<|"|>'], ['<|"|>M<|"|>']),
    ),
    "any object": ({"type": "object"}, ['{"a":[1]}'], ["1"], ["{a:[1,{b:null}]}", "{}"], ["1", "[]"]),
    "no properties": ({"type": "object", "additionalProperties": False}, ["{}"], ['{"a":1}'], ["{}"], ["{a:1}"]),
    "anything": ({}, ['"a"', "[1]"], ["a"], ['<|"|>a<|"|>', "[1,true]"], ["a"]),
    "constant": ({"const": "k"}, ["k"], ["l"], ['<|"|>k<|"|>'], ['<|"|>l<|"|>']),
    "constant object": ({"const": {"a": [1, "b"]}}, ['{"a":[1,"b"]}'], ['{"a":[1,"c"]}'], ['{a:[1,<|"|>b<|"|>]}'], ["{a:[1]}"]),
    "lengths": (
        {"type": "string", "minLength": 2, "maxLength": 3},
        *(["ab", "abc"], ["a", "abcd", ""], ['<|"|>ab<|"|>'], ['<|"|>a<|"|>', '<|"|>abcd<|"|>']),
    ),
    "pattern": (
        {"type": "string", "pattern": r"^[A-Z]{2}-\d+$", "maxLength": 6},
        *(["AB-1", "AB-123"], ["AB-", "ab-1", "xAB-1", "AB-1x", "AB-1234", "AB-٣"], ['<|"|>AB-1<|"|>'], ['<|"|>AB<|"|>', '<|"|><|"|>']),
    ),
    "pattern anywhere": (
        {"type": "string", "pattern": r"a/|^b|[|\]]$"},
        *(["xa/x", "a/", "b", "bx", "x|", "x]", "a\na/"], ["", "xb", "a", "|x"], ['<|"|>xa/<|"|>'], ['<|"|>x<|"|>']),
    ),
    "pattern and the end of the text": (
        {"type": "string", "pattern": "b$"},
        *(["b", "</parameterb"], ["a", "a</parameter>\n<parameter>b"], ['<|"|>b<|"|>'], ['<|"|>a<|"|>b<|"|>']),
    ),
    "format": (
        {"type": "string", "format": "date"},
        *(["2024-02-29"], ["2024-13-01", "today", "2024-02-29 "], ['<|"|>2024-02-29<|"|>'], ['<|"|>x<|"|>']),
    ),
    "pattern of several types": (
        {"type": ["string", "null"], "pattern": "^a$"},
        *(["a", "null"], [], ['<|"|>a<|"|>', "null"], ['<|"|>b<|"|>']),
    ),
    "several types": ({"type": ["integer", "boolean"]}, ["1", "true"], ["a"], ["1", "true"], ['<|"|>1<|"|>', "null"]),
    "long text": ({"type": "string", "maxLength": 5000}, ["ab </parameter c" * 200], ["ab" * 3000], ['<|"|>' + "ab" * 2000 + '<|"|>'], []),
}


def grammar_of_value(name: str, schema: dict[str, object], *, strict: bool = True) -> str:
    parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"], "$defs": DEFINITIONS}
    tool: dict[str, object] = {"type": "function", "function": {"name": "f", "description": "", "parameters": parameters}}
    parser = written(name).template.render(RenderPrompt((USER,), (tool,))).parser
    tools = (Tool("f", "", json.dumps(parameters)),)
    return output_formats.grammar_of_calls(parser, tools, None, parallel=False, strict=strict)


@pytest.mark.parametrize("case", VALUES)
def test_argument_between_tags_fits_its_schema(case: str) -> None:
    schema, right, wrong, gemma_right, gemma_wrong = VALUES[case]
    frame = '<minimax:tool_call>\n<invoke name="f">\n<parameter name="x">{}</parameter>\n</invoke>\n</minimax:tool_call>'
    grammar = grammar_of_value("MiniMax-M2", schema)
    assert [text for text in right if not fits(grammar, frame.replace("{}", text, 1))] == []
    assert [text for text in wrong if fits(grammar, frame.replace("{}", text, 1))] == []
    frame = "<|tool_call>call:f{x:@}<tool_call|>"
    grammar = grammar_of_value("google-gemma-4-31B-it", schema)
    assert [text for text in gemma_right if not fits(grammar, frame.replace("@", text))] == []
    assert [text for text in gemma_wrong if fits(grammar, frame.replace("@", text))] == []


def test_schema_that_is_not_supported_allows_any_json_unless_a_call_is_forced() -> None:
    frame = '<minimax:tool_call>\n<invoke name="f">\n<parameter name="x">{}</parameter>\n</invoke>\n</minimax:tool_call>'
    grammar = grammar_of_value("MiniMax-M2", {"type": "integer", "not": {"const": 1}}, strict=False)
    assert fits(grammar, frame.replace("{}", "[1]"))
    assert not fits(grammar, frame.replace("{}", "one"))
    with pytest.raises(errors.BadRequest, match=r"tools: .*`not` is not supported"):
        grammar_of_value("MiniMax-M2", {"type": "integer", "not": {"const": 1}})


@pytest.mark.parametrize("pattern", [r"\bword", "a(^b)", "(?=a)b"])
def test_pattern_that_is_not_supported_allows_any_text_unless_a_call_is_forced(pattern: str) -> None:
    frame = '<minimax:tool_call>\n<invoke name="f">\n<parameter name="x">{}</parameter>\n</invoke>\n</minimax:tool_call>'
    grammar = grammar_of_value("MiniMax-M2", {"type": "string", "pattern": pattern}, strict=False)
    assert fits(grammar, frame.replace("{}", "any"))
    with pytest.raises(errors.BadRequest, match=r"tools: .*(only supported at its ends|look-around)"):
        grammar_of_value("MiniMax-M2", {"type": "string", "pattern": pattern})


FITTING = {
    "date-time": (["2024-02-29T23:59:60.5Z", "2024-02-29t00:00:00+01:00"], ["2024-02-29", "2024-02-29T24:00:00Z", "2024-02-29T10:00:00"]),
    "time": (["10:00:00Z", "10:00:00.123-09:30"], ["10:00", "25:00:00Z"]),
    "duration": (["P1Y2M3D", "P3W", "PT1H", "P1DT2H3M4S", "PT5S"], ["P", "PT", "1D", "P1DT"]),
    "email": (["a.b+c@example.org"], ["a@", "@b", "a b@c"]),
    "hostname": (["example.org", "a-b"], ["-a", "a-", "a..b", ""]),
    "ipv4": (["127.0.0.1", "255.255.255.255"], ["256.0.0.1", "1.2.3", "01.2.3.4"]),
    "ipv6": (
        ["::", "::1", "1::", "fe80::1:2", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::"],
        ["1", ":::", "1:2:3:4:5:6:7:8:9", "12345::", "1::2::3"],
    ),
    "uuid": (["123e4567-e89b-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000", "123e4567-e89b-12d3-a456-42661417400g"]),
    "uri": (["https://example.org/a?b=%20#c", "urn:a"], ["example", "https://a b", "a:%zz"]),
}


@pytest.mark.parametrize("name", FITTING)
def test_formats_between_tags_are_those_in_json(name: str) -> None:
    frame = '<minimax:tool_call>\n<invoke name="f">\n<parameter name="x">{}</parameter>\n</invoke>\n</minimax:tool_call>'
    tagged, in_json = grammar_of_value("MiniMax-M2", {"type": "string", "format": name}), grammar_of({"type": "string", "format": name})
    for texts, is_right in zip(FITTING[name], (True, False), strict=True):
        for text in texts:
            assert (text, fits(tagged, frame.replace("{}", text)), fits(in_json, f'"{text}"')) == (text, is_right, is_right)


def test_text_or_a_number_is_read_as_the_template_reads_it() -> None:
    frame = "<tool_call>\n<function=f>\n<parameter=x>\n{}\n</parameter>\n</function>\n</tool_call>"
    grammar = grammar_of_value("Qwen3-Coder", {"enum": ["a", 5, None]})
    assert [text for text in ("a", "5", "null") if not fits(grammar, frame.replace("{}", text))] == []
    assert not fits(grammar, frame.replace("{}", "6"))
    assert fits(grammar_of_value("Qwen3-Coder", {"type": ["string", "integer"]}), frame.replace("{}", "any"))


@pytest.mark.parametrize(
    "name",
    tiers.by_day(
        ["MiniMax-M2", "Qwen3-Coder", "google-gemma-4-31B-it", "MiniMax-M3", "NousResearch-Hermes-3-Llama-3.1-8B-tool_use"],
        *("MiniMax-M2", "google-gemma-4-31B-it"),
        group="long",
    ),
)
def test_as_many_tools_as_a_request_may_have_fit_the_limits(name: str) -> None:
    texts = {"at": {"type": "string", "format": "date-time"}, "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]+$"}}
    parameters = {**PARAMETERS, "properties": {**PARAMETERS["properties"], **texts}}  # type: ignore[dict-item]  # they are dicts
    tools = tuple(Tool(f"tool_{number}", "", json.dumps(parameters)) for number in range(128))
    request = RenderPrompt(
        (USER,), tuple({"type": "function", "function": {"name": tool.name, "parameters": parameters}} for tool in tools)
    )
    parser = written(name).template.render(request).parser
    BYTES.compile(output_formats.grammar_of_calls(parser, tools, None, parallel=True, strict=True), "tools")


def test_call_may_follow_another_one_of_the_same_tool() -> None:
    call = written("Qwen3-Coder").call(GOOD).removesuffix("<|im_end|>\n")
    assert fits(written("Qwen3-Coder").grammar, call * 3)


def test_objects_of_gemma_may_have_many_properties() -> None:
    schema: dict[str, object] = {"type": "object", "properties": {f"p{number:03}": {"type": "integer"} for number in range(200)}}
    grammar = grammar_of_value("google-gemma-4-31B-it", schema)
    for text, is_right in (("{}", True), ("{p003:1,p150:2}", True), ("{p150:2,p003:1}", False), ("{p003:1,p003:1}", False)):
        assert fits(grammar, f"<|tool_call>call:f{{x:{text}}}<tool_call|>") is is_right


@pytest.mark.parametrize("name", ["MiniMax-M2", "google-gemma-4-31B-it", "MiniMax-M3", "Qwen3-Coder"])
@pytest.mark.parametrize("strict", [True, False])
def test_schemas_that_refer_to_each_other_take_no_exponential_time(name: str, strict: bool) -> None:
    """Each of 40 schemas refers to the next one twice, so there are 2**40 paths."""
    links = {f"a{level}": {"anyOf": [{"$ref": f"#/$defs/a{level + 1}"}] * 2} for level in range(40)}
    definitions = {
        **links,
        "a40": {"type": "string", "enum": ["end"]},
        "loop": {"anyOf": [{"$ref": "#/$defs/loop"}, {"$ref": "#/$defs/a40"}]},
    }
    for first in ("a0", "loop"):
        parameters = {"type": "object", "properties": {"x": {"$ref": f"#/$defs/{first}"}}, "required": ["x"], "$defs": definitions}
        # llama.cpp gets a simple schema, because it would follow every path, and its process could die.
        simple = {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]}
        tool: dict[str, object] = {"type": "function", "function": {"name": "f", "parameters": simple}}
        parser = written(name).template.render(RenderPrompt((USER,), (tool,))).parser
        grammar = output_formats.grammar_of_calls(parser, (Tool("f", "", json.dumps(parameters)),), None, parallel=False, strict=strict)
        assert len(grammar) < 50_000


@pytest.mark.parametrize("least", [1001, 10**9])
def test_long_least_texts_are_refused(least: int) -> None:
    for name in ("MiniMax-M2", "google-gemma-4-31B-it"):
        with pytest.raises(errors.BadRequest, match=f"{least} is more than the maximum of 1000"):
            grammar_of_value(name, {"type": "string", "minLength": least}, strict=False)
