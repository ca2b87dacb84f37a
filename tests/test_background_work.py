"""Background work as syntax trees: a task that fails starts again, and no loop over items is outside of `BackgroundItems`.

What runs in the background is found from the tasks: `keep`, `every`, `repeat` and `attempt` name functions, and these call others. Calls
are followed by the types of attributes as far as `__init__` and the fields of a class say them.
"""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from shared import features
from tests import feature_parts
from tests.test_architecture import Finding, Module, calls, modules, name_of, none_of

SERVICES = {"auth": "auth", "gateway": "gateway", "inference": "worker", "metrics": "metrics", "web": "web"}
STARTS = {"keep", "every", "repeat", "attempt"}

#: Tasks that end with their caller, or without which a service answers nothing: these end it.
OTHER_TASKS = {
    "services/auth/change_stream.py": "of a call that follows changes; the two others are started by a task that is kept",
    "services/auth/audit/audit_log.py": "of a task that is kept",
    "services/auth/nodes/mesh_ca.py": "of a task that is kept",
    "services/auth/nodes/nats_logins.py": "without logins, nobody reaches anybody",
    "services/auth/service.py": "the tasks of `wiring`, which are kept, and the NATS logins",
    "services/auth/sessions/active_keys.py": "of a task that is kept",
    "services/gateway/configuration/live_configuration.py": "of a task that is kept",
    "services/gateway/http_api/http_app.py": "of a request",
    "services/gateway/idempotency/recorder.py": "of a request; what it raises is the answer",
    "services/gateway/model_orders.py": "of a call",
    "services/gateway/pull_orders.py": "of a call",
    "services/gateway/requests/request_admission.py": "of a request",
    "services/gateway/rpc_api/model_search_rpc.py": "of a call",
    "services/gateway/scheduling/queue_sharing.py": "of a task that is kept",
    "services/gateway/service.py": "the list of tasks that are kept, and checks of a call",
    "services/inference/backends/model_cache.py": "the engines of a model: without them, the worker answers nothing",
    "services/inference/infer_http.py": "of a request",
    "services/inference/model_pulls.py": "of a pull; what it raises is the pull's problem",
    "services/inference/models/model_copy.py": "of a copy",
    "services/inference/models/model_files.py": "of the reading of a file, which is an attempt",
    "services/inference/pulled_copy.py": "of a copy",
    "services/inference/running_pull.py": "of a pull",
    "services/inference/version_copy.py": "of a copy",
    "services/metrics/collection/mesh_survey.py": "of a question to all nodes",
    "services/metrics/export/otlp_outbox.py": "of the exporter",
    "services/metrics/service.py": "the HTTP server of PROMETHEUS_PORT",
    "services/web/http/event_response.py": "of a request",
    "services/web/http/passthrough.py": "of a request",
}

#: Loops in background work that are over no items: pages, pieces, retries and steps of one thing.
OTHER_LOOPS = {
    "services/auth/accounts/notices.py:work": "each notice is an attempt; the rest is over kinds and pages",
    "services/auth/audit/audit_store.py:shred_before": "pages",
    "services/auth/audit/verification.py:report": "a chain that can't be verified must fail the verification",
    "services/auth/audit/verification.py:_without_lost": "restores that one chain lost rows by",
    "services/auth/privacy/erasure.py:_erase_stored": "the tenants of one account, which is erased as a whole",
    "services/auth/privacy/privacy_store.py:erase": "the steps of one erasure",
    "services/auth/privacy/erasure.py:_erase_of_features": "the features, of one account",
    "services/auth/privacy/retention.py:_forget": "pages",
    "services/auth/sessions/active_keys.py:refresh": "signing keys: all or none",
    "services/auth/sessions/active_keys.py:_apply": "signing keys: all or none",
    "services/gateway/background_jobs.py:extend": "partitions in their order",
    "services/gateway/billing/checkpoint_store.py:close_days": "days in their order, each signed with the one before",
    "services/gateway/configuration/ended_keys.py:remove_policies": "pages",
    "services/gateway/features.py:delete_old": "the features; each is an attempt",
    "services/gateway/http_api/http_call.py:answer_bytes": "the pieces of one answer",
    "services/gateway/idempotency/idempotent_requests.py:_watch_withdrawals": "ids, which are looked up in memory",
    "services/gateway/idempotency/idempotent_requests.py:_play_stored": "the pieces of one answer",
    "services/gateway/idempotency/response_cache.py:_replay": "the pieces of one answer",
    "services/gateway/models/registry.py:_check": "the files of one version",
    "services/gateway/payments/billing.py:handle_events": "each event is an attempt",
    "services/gateway/payments/provider_orders.py:_follow": "reads of one object, until it is not written meanwhile",
    "services/gateway/payments/provider_orders.py:_identify": "the ids of one checkout",
    "services/gateway/payments/provider_orders.py:_reverse_credits": "the reversals of one payment",
    "services/gateway/payments/provider_orders.py:find_lost": "events, which are only kept; each is an attempt later",
    "services/gateway/payments/provider_orders.py:adopt": "the ids of one payment, each an attempt",
    "services/gateway/requests/runs.py:_first_to_answer": "of a request",
    "services/gateway/requests/workers.py:_find": "of a request",
    "services/gateway/requests/workers.py:_ask": "of a request",
    "services/gateway/servers.py:_try": "of a call",
    "services/gateway/usage_reports.py:roll": "days in their order",
    "services/gateway/usage_reports.py:delete_old": "pages",
    "services/gateway/usage_store.py:roll_one": "the pieces of one day",
    "services/inference/backends/model_cache.py:ensure_digests": "the adapters of one model",
    "services/inference/backends/model_cache.py:_prepare": "each model is an attempt",
    "services/inference/console_status.py:step": "the lines of one status",
    "services/inference/model_pulls.py:pull_at_start": "the models of MODELS_PULL; pulling catches what sources and files raise",
    "services/inference/model_trust.py:_ask": "pages",
    "services/inference/models/model_copy.py:_find": "rounds of one copy",
    "services/inference/models/model_copy.py:_fetch": "the blocks of one copy",
    "services/inference/models/model_files.py:_hash": "the files of one model",
    "services/inference/models/model_files.py:_hash_file": "the parts of one model",
    "services/inference/models/model_files.py:_check_when_built": "rounds until the engine is built",
    "services/inference/supervision/engine_supervisor.py:_listen": "the messages of one engine",
    "services/metrics/history/history_writer.py:keep": "samples in their order; one that can't be written is dropped",
    "services/metrics/history/history_writer.py:_write": "the rows of one sample",
    "services/metrics/history/history_writer.py:_roll_up": "spans of time",
    "services/metrics/history/history_writer.py:_delete": "the resolutions",
    "services/metrics/service.py:_follow_events": "each event is an attempt",
    "services/web/http/event_response.py:run": "of a request",
}


OTHER_TASKS |= {place: why for part in feature_parts.modules("background_work") for place, why in part.OTHER_TASKS.items()}
OTHER_LOOPS |= {place: why for part in feature_parts.modules("background_work") for place, why in part.OTHER_LOOPS.items()}


def _modules_of(service: str) -> list[Module]:
    """Return those of a service, and what features add to it."""
    parts = [f"features/{name}/{SERVICES[service]}" for name in features.known()]
    return [module for folder in (f"services/{service}", *parts) for module in modules(folder)]


@dataclass
class Function:
    module: Module
    owner: str
    node: ast.FunctionDef | ast.AsyncFunctionDef

    @property
    def place(self) -> str:
        return f"{self.module.name}:{self.node.name}"


@dataclass
class Code:
    """The functions of one service, and the classes of its attributes."""

    functions: dict[tuple[str, str, str], Function] = field(default_factory=dict)
    attributes: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def of(cls, service: str) -> "Code":
        code = cls()
        for module in _modules_of(service):
            for node in module.tree.body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    code.functions[module.name, "", node.name] = Function(module, "", node)
                elif isinstance(node, ast.ClassDef):
                    code._add_class(module, node)
        return code

    def _add_class(self, module: Module, node: ast.ClassDef) -> None:
        for part in node.body:
            if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
                self.functions[module.name, node.name, part.name] = Function(module, node.name, part)
            elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                self.attributes[node.name, part.target.id] = _class_of(part.annotation)
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                of_argument = {one.arg: _class_of(one.annotation) for one in (*part.args.args, *part.args.kwonlyargs)}
                for target, value in _assigned(part):
                    made = _class_of(value.func) if isinstance(value, ast.Call) else of_argument.get(name_of(value), "")
                    self.attributes[node.name, target] = made

    def called(self, name: str) -> Iterator[Function]:
        """Yield all functions of this name: where a task starts, their class is not always known."""
        yield from (one for (_, _, each), one in self.functions.items() if each == name)

    def callees(self, caller: Function) -> Iterator[Function]:
        for node in ast.walk(caller.node):
            # Also a function that is passed on, as to `each`.
            name = name_of(node) if isinstance(node, ast.Attribute | ast.Name) else ""
            match name.split("."):
                case ["self", method]:
                    found = self.functions.get((caller.module.name, caller.owner, method))
                case ["self", attribute, method]:
                    owner = self.attributes.get((caller.owner, attribute), "")
                    found = next((one for (_, of, each), one in self.functions.items() if owner and (of, each) == (owner, method)), None)
                case [function]:
                    found = self.functions.get((caller.module.name, "", function))
                case [module, function]:
                    places = (key for key in self.functions if key[1:] == ("", function) and key[0].endswith(f"/{module}.py"))
                    found = self.functions.get(next(places, ("", "", "")))
                case _:
                    found = None
            if found is not None:
                yield found

    def in_background(self) -> dict[str, Function]:
        found: dict[str, Function] = {}
        waiting = [one for name in self._started() for one in self.called(name)]
        while waiting:
            one = waiting.pop()
            key = f"{one.place}:{one.owner}"
            if key not in found:
                found[key] = one
                waiting += self.callees(one)
        return found

    def _started(self) -> set[str]:
        names: set[str] = set()
        for module in {one.module.name: one.module for one in self.functions.values()}.values():
            for call, called in calls(module):
                if called.rpartition(".")[2] in STARTS:
                    passed = [node for argument in call.args for node in ast.walk(argument)]
                    names |= {node.attr for node in passed if isinstance(node, ast.Attribute)}
                    names |= {node.id for node in passed if isinstance(node, ast.Name)}
        return names


def _class_of(node: ast.expr | None) -> str:
    """Return the class of an annotation such as `T`, `T | None` or `module.T`."""
    if isinstance(node, ast.BinOp):
        return _class_of(node.left)
    return "" if node is None else name_of(node).rpartition(".")[2]


def _assigned(function: ast.FunctionDef) -> Iterator[tuple[str, ast.expr]]:
    """Yield the attributes that are assigned, and their values."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                both_tuples = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                pairs = zip(target.elts, node.value.elts, strict=False) if both_tuples else [(target, node.value)]  # type: ignore[attr-defined]
                for each, value in pairs:
                    if isinstance(each, ast.Attribute) and name_of(each.value) == "self":
                        yield each.attr, value


def _waits(nodes: Iterable[ast.AST]) -> bool:
    return any(isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith) for part in nodes for node in ast.walk(part))


def loops_over_items(function: Function) -> Iterator[Finding]:
    for node in ast.walk(function.node):
        if isinstance(node, ast.While):
            is_loop = any(isinstance(each, ast.NamedExpr) for each in ast.walk(node.test)) and _waits([node])
        elif isinstance(node, ast.For | ast.AsyncFor):
            is_loop = _waits(node.body)
        else:
            is_loop = isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp) and _waits(
                [node.elt, *(test for each in node.generators for test in each.ifs)]
            )
        if is_loop:
            yield function.module.find(
                node, f"{function.node.name}: a loop over items: use `items.each` or `drain`, or say in OTHER_LOOPS what it is"
            )


def test_every_background_task_starts_again_or_says_why_not() -> None:
    findings, seen = [], set()
    for service in SERVICES:
        for module in _modules_of(service):
            for call, called in calls(module):
                if not called.endswith(".create_task") or not call.args:
                    continue
                started = name_of(call.args[0].func).rpartition(".")[2] if isinstance(call.args[0], ast.Call) else ""
                if started in STARTS:
                    continue
                seen.add(module.name)
                if module.name not in OTHER_TASKS:
                    findings.append(module.find(call, "a task that ends the service if it fails: use `keep`, or say why in OTHER_TASKS"))
    none_of(findings)
    assert seen == set(OTHER_TASKS), "delete what is no longer there"


def test_background_work_has_no_loop_over_items_outside_of_each() -> None:
    findings, seen = [], set()
    for service in SERVICES:
        background = Code.of(service).in_background()
        assert len(background) > 3, f"{service}: nothing was found"
        for function in background.values():
            for finding in loops_over_items(function):
                seen.add(function.place)
                if function.place not in OTHER_LOOPS:
                    findings.append(finding)
    none_of(findings)
    assert seen == set(OTHER_LOOPS), "delete what is no longer there"


def test_the_loops_of_the_past_are_found() -> None:
    past = """class A:
  async def work(self):
    while await self.take():
      pass
    while job := await self.take():
      await self.do(job)
    for row in await self.rows():
      await self.do(row)
    return [row for row in rows if await self.row(row)]"""
    tree = ast.parse(past)
    module = Module(next(modules("services/web")).path, past, tree)
    (work,) = tree.body[0].body  # type: ignore[attr-defined]
    assert [finding.line for finding in loops_over_items(Function(module, "A", work))] == [5, 7, 9]
