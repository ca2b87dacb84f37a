"""Reading the configuration file: every mistake is reported with its line and field."""

import asyncio
import json
import os
import re
import textwrap
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.configuration import config_file
from services.gateway.configuration.config_file import ReadRequest, ReadResult
from services.gateway.guard import guard_checks
from shared import errors
from shared.api.configuration import ConfigDocument
from shared.config_documents import (
    DEFAULT_MODEL,
    MESH_POLICY,
    ConfigKind,
    DefaultModelDocument,
    Document,
    ModelLimitDocument,
    PlanDocument,
    PolicyDocument,
    RouteDocument,
    TargetDocument,
)
from tests.stacks import REPOSITORY
from tools import reference

DOCS = REPOSITORY / "docs"

WHOLE = """
routes:
  assistant:
    targets:
      - name: local
        model: smollm2
policies:
  mesh: {machines: trusted, direct_models: false}
plans:
  free: {requests_per_minute: 10, included_tokens: unlimited}
model_limits:
  smollm2: {concurrency: 3}
default_model: assistant
"""

BAD_NAME = (
    "use 1 to 100 letters, digits and . _ : / @ - in the name, beginning with a letter or digit; for routes and trust, it may end with *"
)


def read(text: str) -> ReadResult:
    return config_file.read_here(ReadRequest(text=textwrap.dedent(text)), guard_checks.check)


def test_a_whole_file() -> None:
    result = read(WHOLE)
    assert result.mistakes == ()
    assert [(document.kind, document.name, document.line) for document in result.documents] == [
        (ConfigKind.ROUTE, "assistant", 3), (ConfigKind.POLICY, "mesh", 8), (ConfigKind.PLAN, "free", 10),
        (ConfigKind.MODEL_LIMIT, "smollm2", 12), (ConfigKind.DEFAULT_MODEL, "default", 13),
    ]  # fmt: skip
    assert result.documents[2].body == '{"requests_per_minute":10,"included_tokens":"unlimited"}'


def test_all_mistakes_are_named_with_their_lines() -> None:
    result = read("""\
        routes:
          assistant:
            targets: [{name: local, model: smollm2}]
          "bad name":
            targets:
              - name: a
                modl: x
            stiky: user
          none:
            targets: []
          text: smollm2
        plans:
          free: {requests_per_minute: 0, included_tokens: -1}
          Gold: {}
        policies:
          mesh: {machines: everywhere}
        default_model: 3
        """)
    assert result.mistakes == (
        f"line 4, routes.bad name: {BAD_NAME}",
        "line 8, routes.bad name.stiky: unknown field; did you mean sticky?",
        "line 7, routes.bad name.targets[0].modl: unknown field; did you mean model?",
        "line 6, routes.bad name.targets[0]: the field model is missing",
        "line 10, routes.none.targets: expected `array` of length >= 1",
        "line 11, routes.text: write fields here, as name: value",
        "line 13, plans.free.requests_per_minute: expected `int` >= 1",
        "line 13, plans.free.included_tokens: expected `int` >= 0",
        "line 14, plans.Gold: use 1 to 32 lowercase letters, digits, _ and - in the name, beginning with a letter",
        "line 16, policies.mesh.machines: invalid enum value 'everywhere'",
        "line 17, default_model.model: expected `str`, got `int`",
    )
    assert [document.name for document in result.documents] == ["assistant"]


def test_mistakes_within_a_route_or_policy_are_named_with_their_lines() -> None:
    result = read("""\
        routes:
          shares:
            targets:
              - {name: a, model: x, share: 60}
              - {name: a, model: y, share: 30}
          hours:
            targets:
              - name: a
                model: x
                when:
                  hours: Mon-Fri 08:00-18:00 Europe/Nowhere
            cache_seconds: 60
        policies:
          mesh:
            guard:
              patterns:
                - name: twice
                  pattern: (a)\\1
                  max_length: 9
        """)
    assert result.mistakes == (
        "line 5, routes.shares.targets[1].name: must be unique within its route",
        "line 3, routes.shares.targets: the shares add up to 90, not 100",
        "line 11, routes.hours.targets[0].when.hours: there is no time zone 'Europe/Nowhere'",
        "line 12, routes.hours.cache_seconds: has no effect without cache: same_request",
        "line 18, policies.mesh.guard.patterns[0].pattern: can't be used: invalid escape sequence: \\1",
    )
    assert result.documents == ()


def test_mistakes_in_lists_of_texts_and_in_mappings_are_named() -> None:
    assert read("policies: {mesh: {external: [ok, 'Not Ok'], guard: {prompt: {email: never}}}}").mistakes == (
        "line 1, policies.mesh.external: expected `str` matching regex '^([a-z0-9][a-z0-9_-]{0,31}|\\\\*)\\\\Z' (at [1])",
        "line 1, policies.mesh.guard.prompt: invalid enum value 'never' (at [...])",
    )


SECTIONS = (
    "the file: write sections here: routes, policies, plans, model_limits, default_model, upstream_prices, deployments, catalog, servers, "
    "trust"
)


def test_what_is_not_a_configuration() -> None:
    for text, mistake in {
        "": SECTIONS,
        "- 1": SECTIONS,
        "route: {}": "line 1, route: unknown section; did you mean routes?",
        "routes: 3": "line 1, routes: write documents here, as name: fields",
        "routes: {a: 1, a: 2}": "line 1: 'a' is here twice",
        "routes: {[1]: 2}": "line 1: a name must be text",
        "a: &x 1\nb: *x": "line 1: anchors and aliases (& and *) are not supported; write the value again",
        "a: !!python/name:os.x []": "line 1: the type tag:yaml.org,2002:python/name:os.x is not supported",
        "[" * 100_000: "line 1: nested more than 20 deep",
        "\na: \t b:\n- c": "line 2: mapping values are not allowed in this context",
        "a: 'open": "line 1: found unexpected end of stream",
        "a: \x00": "the file is not YAML: unacceptable character #x0000: control characters are not allowed",
    }.items():
        assert read(text).mistakes == (mistake,), text[:50]


def test_dates_and_numbers_in_names_stay_text() -> None:
    result = read("default_model: 2024-01-01\nroutes: {1.5: {targets: [{name: 'on', model: 'off'}]}}")
    assert result.mistakes == ()
    assert [(document.name, document.body) for document in result.documents] == [
        (DEFAULT_MODEL, '{"model":"2024-01-01"}'), ("1.5", '{"targets":[{"name":"on","model":"off"}]}')
    ]  # fmt: skip


def test_only_routes_and_their_limits_have_patterns_as_names() -> None:
    body = "targets: [{name: a, model: x}]"
    longest = "a" * 99 + "*"
    good = [f"routes: {{'{name}': {{{body}}}}}" for name in ("claude-*", "*", longest)] + ["model_limits: {'gpt-*': {concurrency: 3}}"]
    for text in good:
        assert read(text).mistakes == ()
    bad = [f"routes: {{'{name}': {{{body}}}}}" for name in ("a*b", "**", "-*", "a" + longest, "a" * 101)]
    for text in [*bad, "upstream_prices: {'gpt-*': {input: 1, output: 1}}"]:
        (mistake,) = read(text).mistakes
        assert mistake.endswith(BAD_NAME)
    route = RouteDocument(targets=(TargetDocument(name="a", model="x"),))
    (exported,) = read(config_file.write({(ConfigKind.ROUTE, "*"): route})).documents
    assert exported.name == "*"


def test_null_removes_a_document() -> None:
    result = read("default_model: null\nroutes: {a: ~}")
    assert [(document.name, document.body) for document in result.documents] == [(DEFAULT_MODEL, None), ("a", None)]


def test_documents_of_programs_are_checked_alike() -> None:
    def read_document(body: str | None, name: str = "free") -> ReadResult:
        return config_file.read_here(ReadRequest(documents=(ConfigDocument(ConfigKind.PLAN, name, body),)), guard_checks.check)

    assert read_document('{"included_tokens": 3}').documents[0].body == '{"included_tokens":3}'
    assert read_document(None).documents[0].body is None
    assert read_document('{"included_token": 3}').mistakes == ("plan.free.included_token: unknown field; did you mean included_tokens?",)
    assert read_document("{}", "gold").mistakes == ()
    for name in ("Gold", "2gold", "g" * 33, "gold\n", "a.b"):
        (mistake,) = read_document("{}", name).mistakes
        assert mistake.endswith("in the name, beginning with a letter"), name
    (mistake,) = read_document("{").mistakes
    assert mistake.startswith("a body is not JSON: ")


def test_every_example_of_the_documents_can_be_applied() -> None:
    found = 0
    for page in sorted(DOCS.rglob("*.md")):
        for block in re.findall(r"^ *```yaml\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            example = yaml.safe_load(textwrap.dedent(block))
            # Some examples leave out the text of keys.
            if isinstance(example, dict) and "…" not in block and example.keys() <= config_file.SECTIONS.keys():
                found += 1
                assert read(block).mistakes == (), page.name
    assert found >= 14


_limits = st.none() | st.just("unlimited") | st.integers(1, 10**12)
_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,99}", fullmatch=True)
_models = st.text(min_size=1, max_size=200).filter(lambda name: name.isprintable())
_numbers = dict.fromkeys(("requests_per_hour", "requests_per_minute", "tokens_per_minute", "concurrency", "included_tokens"), _limits)
_overages = st.none() | st.just("unlimited") | st.from_regex(r"[0-9]{1,6}\.[0-9]{1,6}", fullmatch=True)


def _documents(
    routes: dict[str, str], plan: dict[str, Any], limits: dict[str, Any], default: str, direct: bool
) -> dict[tuple[ConfigKind, str], Document]:
    return {
        **{(ConfigKind.ROUTE, name): RouteDocument(targets=(TargetDocument(name="main", model=model),)) for name, model in routes.items()},
        (ConfigKind.PLAN, "pro"): PlanDocument(**plan),
        **{(ConfigKind.MODEL_LIMIT, name): ModelLimitDocument(concurrency=number) for name, number in limits.items()},
        (ConfigKind.DEFAULT_MODEL, DEFAULT_MODEL): DefaultModelDocument(model=default),
        (ConfigKind.POLICY, MESH_POLICY): PolicyDocument(direct_models=direct),
    }


_routes, _model_limits = st.dictionaries(_names, _models, max_size=3), st.dictionaries(_names, _limits, max_size=3)


@given(
    st.builds(_documents, _routes, st.fixed_dictionaries({**_numbers, "overage_limit": _overages}), _model_limits, _models, st.booleans())
)
def test_what_is_exported_can_be_applied(documents: dict[tuple[ConfigKind, str], Document]) -> None:
    result = read(config_file.write(documents))
    assert result.mistakes == ()
    assert {(found.kind, found.name): found.body for found in result.documents} == {
        key: msgspec.json.encode(body).decode() for key, body in documents.items()
    }


async def test_the_event_loop_runs_while_a_large_file_is_read() -> None:
    routes = {f"route-{number}": {"targets": [{"name": "main", "model": "smollm2"}]} for number in range(5_000)}
    reading = asyncio.create_task(config_file.read(ReadRequest(text=yaml.safe_dump({"routes": routes}))))
    turns = 0
    while not reading.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert len(await reading) == 5_000
    assert turns > 100


async def test_many_mistakes_become_one_error_of_bounded_length() -> None:
    text = "routes:\n" + "".join(f"  r{number}: {{}}\n" for number in range(200))
    with pytest.raises(errors.BadRequest, match="the configuration has 200 mistakes; nothing was applied") as caught:
        await config_file.read(ReadRequest(text=text))
    lines = caught.value.message.splitlines()
    assert (len(lines), lines[1], lines[-1]) == (52, "line 2, routes.r0: the field targets is missing", "… and 150 more")


async def test_a_canceled_reader_leaves_no_process() -> None:
    reading = asyncio.create_task(config_file.read(ReadRequest(text=WHOLE)))
    before = _children()
    async with asyncio.timeout(30):
        while not (started := _children() - before):  # noqa: ASYNC110 - there is nothing else to wait for
            await asyncio.sleep(0.001)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not started & _children()


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split())


def test_the_schema_describes_the_file() -> None:
    schema = json.loads(reference.config_schema())
    check = jsonschema.Draft202012Validator(schema)
    assert list(check.iter_errors(yaml.safe_load(WHOLE))) == []
    for wrong in ("route: {}", "plans: {Gold: {}}", "routes: {a: {targets: []}}", "default_model: 3", "plans: {free: {included_token: 1}}"):
        assert list(check.iter_errors(yaml.safe_load(wrong))), wrong
