"""The gateway against its own OpenAPI document, with and without a credential: it answers valid and invalid requests as documented,
and no request gets a 5xx."""

import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import hypothesis
import hypothesis.stateful
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from schemathesis import checks
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks as rules

from shared.api import auth
from shared.types import Tier
from tests import feature_parts
from tests.integration import asking
from tests.people import ApiClient, Person
from tests.stacks import RunningStack

pytestmark = pytest.mark.nightly("schemathesis")

#: For each operation and each of three kinds of requests: a minute of CI in all.
EXAMPLES = 8
#: Of the stateful run: sequences of requests, and requests in each.
STORIES, STEPS = 30, 8
CHECKS = [
    checks.not_a_server_error,
    rules.status_code_conformance,
    rules.content_type_conformance,
    rules.response_headers_conformance,
    rules.response_schema_conformance,
    rules.ignored_auth,
    rules.unsupported_method,
]
#: A longer answer only blocks a connection of the test.
ANSWER_SECONDS = 30
#: Their good calls, which operations have none, and which run a model.
_OF_FEATURES = feature_parts.modules("good_calls")
NEVER_GOOD = {
    # A login without its second step, as test_access_matrix has, or that somebody approves; a route, as test_moderation has.
    "POST /api/auth/confirm",
    "POST /api/auth/device/token",
    "POST /v1/moderations",
    # Answers are not kept.
    "DELETE /v1/responses/{response}",
    "POST /v1/responses/{response}",
    # With MONEY=off nothing is sold.
    "GET /api/billing",
    "GET /api/billing/invoices/{number}",
    "POST /api/billing/credits",
    "POST /api/billing/payments",
    "POST /api/billing/plan",
    "POST /api/billing/portal",
    "POST /api/billing/top-ups",
    # Versions are for developers; test_pushed_models has calls that fit each other.
    "GET /api/models/blobs/{digest}",
    "GET /api/models/{model}/trust",
    "GET /api/models/{model}/versions",
    "HEAD /api/models/blobs/{digest}",
    "PATCH /api/models/blobs/{digest}",
    "POST /api/models/{model}/promote",
    "POST /api/models/{model}/retire",
    "POST /api/models/{model}/revoke",
    "POST /api/models/{model}/rollback",
    "POST /api/models/{model}/withdraw",
    "POST /api/models/{model}/sign",
    "POST /api/models/{model}/versions",
    # Whole files only.
    "POST /v1/uploads",
    "POST /v1/uploads/{upload}",
    *(name for part in _OF_FEATURES for name in getattr(part, "NEVER_GOOD", ())),
}

RUNS_A_MODEL = {
    "/api/inference",
    "/api/infer",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/rerank",
    "/infill",
    *(path for part in _OF_FEATURES for path in getattr(part, "RUNS_A_MODEL", ())),
}

Operation = APIOperation[Any, Any, Any, Any]
#: A valid call's path parameters, with its body or headers. Made again for each call, because some are valid only once.
Good = Mapping[str, Callable[[], dict[str, Any]]]

_settings = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Fuzz:
    """Sends cases of every operation, counts the answers, and collects what is wrong with them."""

    def __init__(self, stack: RunningStack, credential: str | None) -> None:
        self.schema = schemathesis.openapi.from_url(f"{stack.url('gateway')}/openapi.json")
        self._session = requests.Session()
        self._session.trust_env = False
        self._headers = {} if credential is None else {"authorization": f"Bearer {credential}"}
        self._calls = 0
        self.operations: list[Operation] = [_found(found) for found in self.schema.get_all_operations()]
        self.statuses: dict[str, Counter[int]] = defaultdict(Counter)
        self.failures: list[str] = []

    def fitting(self) -> None:
        """Send requests that fit the schema."""
        for operation in self.operations:
            self._ask_many(operation, operation.as_strategy(generation_mode=GenerationMode.POSITIVE))

    def unfitting(self) -> None:
        """Send requests that don't fit the schema."""
        for operation in self.operations:
            self._ask_many(operation, operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))

    def nearly_good(self, good: Good) -> None:
        """Send valid calls with one or two random fields, which get further than entirely random calls."""
        for operation in self.operations:
            if (make := good.get(operation.label)) is not None:
                self._ask_many(operation, _seasoned(operation, make))

    def _ask_many(self, operation: Operation, cases: st.SearchStrategy[Any]) -> None:
        @hypothesis.given(case=cases)
        @_settings
        def ask(case: Any) -> None:
            self._ask(case)

        try:
            ask()
        except hypothesis.errors.Unsatisfiable:
            pass  # everything fits the schema
        except BaseExceptionGroup as group:
            self.failures += [f"{operation.label}: {one}" for one in group.exceptions]
        except AssertionError as error:
            self.failures.append(f"{operation.label}: {error}")

    def _ask(self, case: Any) -> None:
        options = self.prepare(case)
        self.check(case, case.call(**options), options["headers"])

    def prepare(self, case: Any) -> dict[str, Any]:
        """Return how to send a case."""
        self._calls += 1
        if case.operation.path in RUNS_A_MODEL and isinstance(case.body, dict) and case.body.get("model") is None:
            # The default model is a real one, which is slow on two cores.
            case.body = {**case.body, "model": "echo"}
        # Each request comes from another address, as a proxy on this machine would report it: limits per address are tested elsewhere.
        place = f"198.51.{self._calls // 250}.{self._calls % 250 + 1}"
        headers = {**self._headers, "X-Forwarded-For": place}
        if case.operation.path == "/metrics":
            # It answers programs on this machine, but no requests through a proxy.
            headers = dict(self._headers)
        return {"session": self._session, "headers": headers, "timeout": ANSWER_SECONDS}

    def check(self, case: Any, answer: Any, headers: Mapping[str, str]) -> None:
        """Count an answer, and raise what is wrong with it."""
        self.statuses[case.operation.label][answer.status_code] += 1
        if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.failures.append(f"{case.operation.label}: {answer.status_code} {answer.text[:500]} to {str(case.body)[:500]}")
        # OpenAPI 3.1 can't describe events, and schemathesis takes the schema of a stream's whole text for that of each event.
        is_stream = answer.headers.get("content-type", [""])[0].startswith("text/event-stream")
        skipped = [rules.response_schema_conformance] if is_stream else []
        case.validate_response(answer, checks=CHECKS, excluded_checks=skipped, headers=headers, transport_kwargs={"session": self._session})


def _found(found: Any) -> Operation:
    """Return the operation. Raises if the document is wrong."""
    operation: Operation = found.ok()
    return operation


def _needs_header(operation: Operation) -> bool:
    return any(parameter.is_required for parameter in operation.headers)


@st.composite
def _seasoned(draw: st.DrawFn, operation: Operation, make: Callable[[], dict[str, Any]]) -> Any:
    case = draw(operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
    good = make()
    case.path_parameters = {parameter.name: good.pop(parameter.name) for parameter in operation.path_parameters}
    if not operation.body or isinstance(case.body, str | bytes):
        case.headers.update(good)
        return case
    made_up = case.body if isinstance(case.body, dict) else {}
    taken = draw(st.sets(st.sampled_from(sorted(made_up)), max_size=2)) if made_up else set()
    case.body = good | {name: made_up[name] for name in taken if name not in good}
    return case


@pytest.fixture
async def fuzzer(api_client: ApiClient) -> Person:
    return await api_client.register("fuzz", Tier.ENTERPRISE)


@pytest.fixture
async def good(stack: RunningStack, api_client: ApiClient, fuzzer: Person) -> Good:
    """Valid calls of every operation that takes parameters."""
    async with stack.http(fuzzer.key.secret) as http:
        answered = await asking.inference(http, "a request of one's own")
        of_features = {name: call for part in _OF_FEATURES for name, call in (await part.good_calls(http)).items()}
    message, digest = {"role": "user", "content": "hi"}, "sha256:" + "0" * 64
    sessions = [await _session(api_client, fuzzer) for _ in range(4)]
    keys = [(await api_client.make_key(fuzzer, f"spare {number}")).id for number in range(4)]

    def account() -> dict[str, Any]:
        name = f"fuzz-{secrets.token_hex(5)}"
        return {"username": name, "email": f"{name}@example.org", "password": secrets.token_urlsafe(16)}

    return {
        "POST /api/auth/register": account,
        "POST /api/auth/login": lambda: {"username": fuzzer.username, "password": fuzzer.password},
        "POST /api/auth/confirm": lambda: {"code": "123456"},
        "POST /api/auth/refresh": lambda: {"session_token": sessions.pop() if sessions else "spent"},
        "POST /api/auth/logout": lambda: {"session_token": secrets.token_urlsafe(32)},
        "POST /api/auth/api-keys": lambda: {"name": "made up"},
        "DELETE /api/auth/api-keys/{key}": lambda: {"key": str(keys.pop()) if keys else "gone"},
        "DELETE /api/inference": lambda: {"Idempotency-Key": "nothing-runs-under-it"},
        "POST /api/feedback": lambda: {"request_id": str(answered.request_id), "rating": 1},
        "POST /api/inference": lambda: {"prompt": "hi", "model": "echo"},
        "POST /api/infer": lambda: {"payload": "hi", "model": "echo"},
        "POST /v1/chat/completions": lambda: {"messages": [message], "model": "echo"},
        "POST /v1/completions": lambda: {"prompt": "hi", "model": "echo"},
        "POST /v1/responses": lambda: {"input": "hi", "model": "echo"},
        "POST /v1/messages": lambda: {"messages": [message], "model": "echo", "max_tokens": 5},
        "POST /infill": lambda: {"input_prefix": "hi", "input_suffix": "there", "model": "echo"},
        "POST /v1/messages/count_tokens": lambda: {"messages": [message], "model": "echo"},
        "POST /v1/responses/input_tokens": lambda: {"input": "hi", "model": "echo"},
        "POST /v1/responses/{response}": lambda: {"response": "resp_1/cancel"},
        "DELETE /v1/responses/{response}": lambda: {"response": "resp_1"},
        "POST /api/auth/device": dict,
        "POST /api/auth/device/token": lambda: {"device_code": "none"},
        "GET /api/billing/invoices/{number}": lambda: {"number": "INV-2026-000001"},
        "POST /api/billing/credits": lambda: {"user": fuzzer.username, "amount": "1"},
        "POST /api/billing/payments": lambda: {"number": "INV-2026-000001", "reference": "none"},
        "POST /api/billing/plan": lambda: {"plan": "pro"},
        "POST /api/billing/portal": dict,
        "POST /api/billing/top-ups": lambda: {"amount": "5", "order_id": str(uuid4())},
        "HEAD /api/models/blobs/{digest}": lambda: {"digest": digest},
        "GET /api/models/blobs/{digest}": lambda: {"digest": digest, "Range": "bytes=0-5"},
        "PATCH /api/models/blobs/{digest}": lambda: {"digest": digest, "Content-Range": "bytes 0-1/2"},
        "GET /api/models/{model}/versions": lambda: {"model": "tiny"},
        "POST /api/models/{model}/versions": lambda: {"model": "tiny"},
        "GET /api/models/{model}/trust": lambda: {"model": "tiny"},
        "POST /api/models/{model}/promote": lambda: {"model": "tiny", "version": 1},
        "POST /api/models/{model}/retire": lambda: {"model": "tiny", "version": 1},
        "POST /api/models/{model}/revoke": lambda: {"model": "tiny", "version": 1, "reason": "none"},
        "POST /api/models/{model}/rollback": lambda: {"model": "tiny"},
        "POST /api/models/{model}/withdraw": lambda: {"model": "tiny"},
        "POST /api/models/{model}/sign": lambda: {"model": "tiny", "version": 1, "signature": "bm9uZQ=="},
        "POST /v1/rerank": lambda: {"query": "hi", "documents": ["hi"], "model": "echo"},
        "POST /v1/embeddings": lambda: {"input": "hi", "model": "echo"},
        "POST /v1/moderations": lambda: {"input": "hi"},
        "POST /v1/tokenize": lambda: {"prompt": "hi", "model": "echo"},
        "POST /v1/detokenize": lambda: {"tokens": [1], "model": "smollm2"},
        "POST /v1/apply-template": lambda: {"messages": [message], "model": "echo"},
        "GET /v1/models/{model}": lambda: {"model": "echo"},
    } | of_features


async def _session(api_client: ApiClient, person: Person) -> str:
    asked = auth.LoginUser(auth.Credentials(person.password, person.username))
    return (await api_client.mesh.rpc.call(auth.login_user, asked)).session_token


@pytest.mark.timeout(300)
async def test_with_a_credential_every_answer_is_one_of_the_document(stack: RunningStack, fuzzer: Person, good: Good) -> None:
    fuzz = Fuzz(stack, fuzzer.key.secret)
    takes_something = {one.label for one in fuzz.operations if one.body or one.path_parameters or _needs_header(one)}
    assert takes_something == set(good), f"a new operation needs a good call here: {sorted(takes_something ^ set(good))}"
    fuzz.nearly_good(good)
    fuzz.fitting()
    fuzz.unfitting()
    assert not fuzz.failures, "\n\n".join(fuzz.failures)
    labels = {operation.label for operation in fuzz.operations}
    assert labels == set(fuzz.statuses)
    never = {label for label, counts in fuzz.statuses.items() if not any(status < 300 for status in counts)}
    assert {label: dict(fuzz.statuses[label]) for label in never ^ NEVER_GOOD} == {}


@pytest.mark.timeout(300)
async def test_without_one_every_answer_is_one_of_the_document_too(stack: RunningStack, good: Good) -> None:
    fuzz = Fuzz(stack, None)
    fuzz.nearly_good(good)
    fuzz.fitting()
    assert not fuzz.failures, "\n\n".join(fuzz.failures)
    answered = {operation.label: set(fuzz.statuses[operation.label]) for operation in fuzz.operations}
    open_ = {operation.label for operation in fuzz.operations if not operation.definition.raw["security"]}
    assert {label: found for label, found in answered.items() if label not in open_ and found != {401}} == {}
    assert {label: found for label, found in answered.items() if label in open_ - NEVER_GOOD and not found & {200, 201}} == {}


@pytest.mark.timeout(300)
async def test_what_answers_name_can_be_asked_for(stack: RunningStack, fuzzer: Person) -> None:
    """Schemathesis's stateful run: it takes ids of answers, such as a job's, into later requests, such as for its result."""
    fuzz = Fuzz(stack, fuzzer.key.secret)
    seen: Counter[str] = Counter()

    class Machine(fuzz.schema.as_state_machine()):  # type: ignore[misc]
        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return fuzz.prepare(case)

        def validate_response(self, response: Any, case: Any, **_: Any) -> None:
            seen[case.operation.label] += response.status_code < 300
            fuzz.check(case, response, self.get_call_kwargs(case)["headers"])

    steps = hypothesis.settings(_settings, max_examples=STORIES, stateful_step_count=STEPS)
    hypothesis.stateful.run_state_machine_as_test(Machine, settings=steps)
    assert not fuzz.failures, "\n\n".join(fuzz.failures)
    # Only ids of former answers get there.
    assert {label for label, count in seen.items() if "{" in label and count}, dict(seen)
