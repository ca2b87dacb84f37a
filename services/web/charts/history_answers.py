"""Turn the responses of the metrics service into named series for the charts. Pure.

Missing counters count as 0 wherever metrics were collected.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.web.charts import history_queries, history_view
from services.web.charts.history_queries import HistoryQuery
from services.web.charts.history_view import Grid, Values
from shared import errors
from shared.api.metrics import History, HistoryLine

#: How many characters of a node id the history stores, and how many are shown.
NODE_LETTERS, SHOWN_LETTERS = 12, 9
#: Label -> request statuses. `_ALWAYS` labels have a line even without requests.
_ENDS = {
    "Completed": {"success"},
    "Failed": {"error", "timeout"},
    "Rate limited": {"limited"},
    "Rejected": {"rejected"},
    "Canceled": {"cancelled"},
}
_ALWAYS = {"Completed", "Failed"}
#: Path of a link -> label; the fastest path first.
_PATHS = {"direct": "Direct", "punched": "Direct (NAT)", "relayed": "Relay", "nats": "NATS"}
_GATEWAY, _WORKER = "gateway", "inference"
#: shared/node/machine.py appends it to the host name, which a container does not know.
_BOOT_SUFFIX = re.compile(r"-[0-9a-f]{6}\Z")
_NAMELESS_HOST = "machine"


@dataclass(frozen=True, slots=True)
class HistorySeries:
    id: str
    label: str
    values: Values
    #: For a machine: the label isolated for use in a sentence, because names can contain right-to-left text.
    short: str = ""


@dataclass(frozen=True, slots=True)
class HistoryAnswers:
    """The responses. Every method except ``collected_steps`` raises the error that replaced a response."""

    found: Mapping[HistoryQuery, History | errors.AimeshError]
    grid: Grid
    #: Node names, by the stored part of the id.
    names: Mapping[str, str]
    #: The stored part of the id of one node; empty for all nodes.
    node: str = ""

    def collected_steps(self) -> Values:
        """Return values for the steps in which metrics were collected."""
        return self._seen(HistoryQuery.WHOLE, history_queries.MESH_SEEN)

    def _seen(self, question: HistoryQuery, name: str) -> Values:
        answer = self.found.get(question)
        return self._total(line for line in (answer.lines if isinstance(answer, History) else ()) if line.name == name)

    def requests(self) -> list[HistorySeries]:
        seen, lines = self.collected_steps(), self._lines(HistoryQuery.WHOLE, history_queries.COMPLETED)
        found = []
        for label, statuses in _ENDS.items():
            of_it = [line for line in lines if line.labels.get("status") in statuses]
            if of_it or label in _ALWAYS:
                found.append(HistorySeries(label, label, history_view.counted(self._total(of_it), seen)))
        return found

    def first_tokens(self) -> list[HistorySeries]:
        return [
            HistorySeries(label, label, self._values(line))
            for name, label in ((history_queries.HALF_FIRST, "Median"), (history_queries.MAX_FIRST, "p95"))
            for line in self._lines(HistoryQuery.SERVICES, name)
            if line.labels.get("service") == _GATEWAY
        ]

    def tokens(self) -> list[HistorySeries]:
        """Return the gateway's token rates: workers count the same tokens again."""
        seen = self._seen(HistoryQuery.SERVICES, history_queries.GATEWAY_SEEN)
        lines = [line for line in self._lines(HistoryQuery.SERVICES, history_queries.TOKENS) if line.labels.get("service") == _GATEWAY]
        return [
            HistorySeries(label, label, history_view.counted(self._total(line for line in lines if line.labels.get("type") == kind), seen))
            for kind, label in (("input", "Input"), ("output", "Output"))
        ]

    def waiting(self) -> list[HistorySeries]:
        return [self._of_model(line) for line in self._lines(HistoryQuery.MODELS, history_queries.QUEUE)]

    def running(self) -> list[HistorySeries]:
        lines = self._lines(HistoryQuery.MODELS, history_queries.SLOTS)
        return [self._of_model(line) for line in lines if line.labels.get("state") == "busy"]

    def round_trips(self) -> list[HistorySeries]:
        lines = {line.labels.get("path", ""): line for line in self._lines(HistoryQuery.ROUND_TRIPS, history_queries.ROUND_TRIPS)}
        return [HistorySeries(path, label, self._values(lines[path])) for path, label in _PATHS.items() if path in lines]

    def machines(self, question: HistoryQuery) -> list[HistorySeries]:
        """Return one series per machine, or per GPU of a machine. Several nodes on a machine report the same figures."""
        found = self._lines(question, history_queries.OF_MACHINE[question])
        lines = [line for line in found if line.labels.get("node", "").startswith(self.node)]
        grouped: dict[tuple[str, str], list[HistoryLine]] = {}
        for line in lines:
            machine = line.labels.get("machine") or line.labels.get("node") or line.labels.get("service", "")
            grouped.setdefault((machine, line.labels.get("gpu", "")), []).append(line)
        merge = history_view.least if question is HistoryQuery.DISK else history_view.averaged
        labels = self._machine_labels({machine: lines for (machine, _), lines in grouped.items()})
        return [
            _of_machine(machine, gpu, labels[machine], merge(*(self._values(line) for line in _trusted(lines))))
            for (machine, gpu), lines in grouped.items()
        ]

    def shares(self, part: HistoryQuery, whole: HistoryQuery) -> list[HistorySeries]:
        wholes = {one.id: one.values for one in self.machines(whole)}
        parts = [one for one in self.machines(part) if one.id in wholes]
        return [HistorySeries(one.id, one.label, history_view.shared(one.values, wholes[one.id]), one.short) for one in parts]

    def _lines(self, question: HistoryQuery, name: str) -> list[HistoryLine]:
        answer = self.found.get(question)
        # On the page of one node, totals are no substitute.
        ways = [HistoryQuery.MACHINES, *([] if self.node else [HistoryQuery.TOGETHER])] if question in history_queries.OF_MACHINE else []
        other = next((found for way in ways if isinstance(found := self.found.get(way), History)), None)
        answer = answer if isinstance(answer, History) else other or answer
        if isinstance(answer, errors.AimeshError):
            raise answer
        return [] if answer is None else [line for line in answer.lines if line.name == name]

    def _values(self, line: HistoryLine) -> Values:
        return self.grid.fit(line.values)

    def _total(self, lines: Iterable[HistoryLine]) -> Values:
        found = [self._values(line) for line in lines]
        return history_view.added(*found) if found else (None,) * self.grid.steps

    def _of_model(self, line: HistoryLine) -> HistorySeries:
        return HistorySeries(_key(line.labels), line.labels.get("model", ""), self._values(line))

    def _machine_labels(self, machines: Mapping[str, Sequence[HistoryLine]]) -> Mapping[str, str]:
        names = {machine: self._machine_name(machine, lines) for machine, lines in machines.items()}
        count = Counter(names.values())
        return {machine: name if count[name] == 1 else f"{name} {_suffix(machine)}" for machine, name in names.items()}

    def _machine_name(self, machine: str, lines: Sequence[HistoryLine]) -> str:
        host = _BOOT_SUFFIX.sub("", machine)
        if host not in (machine, _NAMELESS_HOST):
            return host
        # The node does not know its host's name: use the names of the nodes there.
        names = dict.fromkeys(self.names.get(line.labels.get("node", "")) or line.labels.get("service", "") for line in lines)
        return ", ".join(filter(None, names)) or machine


def _of_machine(machine: str, gpu: str, label: str, values: Values) -> HistorySeries:
    label = f"{label} GPU {gpu}" if gpu else label
    plain = "".join(letter for letter in label if letter.isprintable())
    return HistorySeries(f"{machine} {gpu}".strip(), label, values, f"\N{FIRST STRONG ISOLATE}{plain}\N{POP DIRECTIONAL ISOLATE}")


def _trusted(lines: Sequence[HistoryLine]) -> Sequence[HistoryLine]:
    """Return the lines of our own services, if any: a worker can claim to run on any machine."""
    return [line for line in lines if line.labels.get("service") != _WORKER] or lines


def _suffix(machine: str) -> str:
    found = _BOOT_SUFFIX.search(machine)
    return found[0].lstrip("-") if found else machine[:SHOWN_LETTERS]


def _key(labels: Mapping[str, str]) -> str:
    return " ".join(value for _, value in sorted(labels.items()))
