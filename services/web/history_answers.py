"""What the metrics service said, as the series that the charts draw. Pure.

A series is called as people call it. Counters that were not there have counted nothing, as long as somebody looked at who counts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.web import history_lines, history_questions
from services.web.history_lines import Grid, Values
from services.web.history_questions import Question
from shared import errors
from shared.api.history import History, HistoryLine

#: Of a node's id: as the history has it, and as much of that as people are shown.
NODE_LETTERS, SHOWN_LETTERS = 12, 9
#: How requests end -> what people call that; the first two have a line even where there are none.
_ENDS = {
    "Answered": {"success"},
    "Failed": {"error", "timeout"},
    "Refused by a limit": {"limited"},
    "Rejected": {"rejected"},
    "Left by their caller": {"cancelled"},
}
_ALWAYS = {"Answered", "Failed"}
#: Path of a link -> what people call it; the shortest way first.
_PATHS = {"direct": "Direct", "punched": "Direct through a NAT", "relayed": "Through a relay", "nats": "Over NATS"}
_GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Series:
    id: str
    label: str
    values: Values
    #: Of a machine: what it is called within a sentence. Names that people made up could turn around what stands beside them.
    short: str = ""


@dataclass(frozen=True, slots=True)
class Answers:
    """Every method but ``looks`` raises what was said instead of an answer."""

    found: Mapping[Question, History | errors.AimeshError]
    grid: Grid
    #: Of machines, by the beginning of their id.
    names: Mapping[str, str]
    #: The beginning of the id of the only machine that matters; empty for all.
    node: str = ""

    def looks(self) -> Values:
        """Numbers in those steps in which somebody looked at the mesh."""
        return self._seen(Question.WHOLE, history_questions.MESH_SEEN)

    def _seen(self, question: Question, name: str) -> Values:
        answer = self.found.get(question)
        return self._total(line for line in (answer.lines if isinstance(answer, History) else ()) if line.name == name)

    def requests(self) -> list[Series]:
        seen, lines = self.looks(), self._lines(Question.WHOLE, history_questions.COMPLETED)
        found = []
        for label, statuses in _ENDS.items():
            of_it = [line for line in lines if line.labels.get("status") in statuses]
            if of_it or label in _ALWAYS:
                found.append(Series(label, label, history_lines.counted(self._total(of_it), seen)))
        return found

    def first_tokens(self) -> list[Series]:
        return [
            Series(label, label, self._values(line))
            for name, label in ((history_questions.HALF_FIRST, "Half within"), (history_questions.MOST_FIRST, "95 % within"))
            for line in self._lines(Question.SERVICES, name)
            if line.labels.get("service") == _GATEWAY
        ]

    def tokens(self) -> list[Series]:
        """The gateway's: workers count the same ones."""
        seen = self._seen(Question.SERVICES, history_questions.GATEWAY_SEEN)
        lines = [line for line in self._lines(Question.SERVICES, history_questions.TOKENS) if line.labels.get("service") == _GATEWAY]
        return [
            Series(label, label, history_lines.counted(self._total(line for line in lines if line.labels.get("type") == kind), seen))
            for kind, label in (("input", "In (prompts)"), ("output", "Out (answers)"))
        ]

    def waiting(self) -> list[Series]:
        return [self._of_model(line) for line in self._lines(Question.MODELS, history_questions.QUEUE)]

    def running(self) -> list[Series]:
        lines = self._lines(Question.MODELS, history_questions.SLOTS)
        return [self._of_model(line) for line in lines if line.labels.get("state") == "busy"]

    def round_trips(self) -> list[Series]:
        lines = {line.labels.get("path", ""): line for line in self._lines(Question.ROUND_TRIPS, history_questions.ROUND_TRIPS)}
        return [Series(path, label, self._values(lines[path])) for path, label in _PATHS.items() if path in lines]

    def machines(self, question: Question) -> list[Series]:
        lines = self._lines(question, history_questions.OF_MACHINE[question])
        return [
            Series(_key(line.labels), self._machine(line.labels), self._values(line), _short(line.labels))
            for line in lines
            if line.labels.get("node", "").startswith(self.node)
        ]

    def shares(self, part: Question, whole: Question) -> list[Series]:
        wholes = {one.id: one.values for one in self.machines(whole)}
        parts = [one for one in self.machines(part) if one.id in wholes]
        return [Series(one.id, one.label, history_lines.shared(one.values, wholes[one.id])) for one in parts]

    def _lines(self, question: Question, name: str) -> list[HistoryLine]:
        answer = self.found.get(question)
        # Whoever asks of one machine is not helped by what they are together.
        ways = [Question.MACHINES, *([] if self.node else [Question.TOGETHER])] if question in history_questions.OF_MACHINE else []
        other = next((found for way in ways if isinstance(found := self.found.get(way), History)), None)
        answer = answer if isinstance(answer, History) else other or answer
        if isinstance(answer, errors.AimeshError):
            raise answer
        return [] if answer is None else [line for line in answer.lines if line.name == name]

    def _values(self, line: HistoryLine) -> Values:
        return self.grid.fit(line.values)

    def _total(self, lines: Iterable[HistoryLine]) -> Values:
        found = [self._values(line) for line in lines]
        return history_lines.added(*found) if found else (None,) * self.grid.steps

    def _of_model(self, line: HistoryLine) -> Series:
        return Series(_key(line.labels), line.labels.get("model", ""), self._values(line))

    def _machine(self, labels: Mapping[str, str]) -> str:
        """What people call it, and enough of its id to tell it from others of that name."""
        node = labels.get("node", "")
        name = f"{self.names.get(node) or labels.get('service', '')} {node[:SHOWN_LETTERS]}".strip()
        return f"{name} GPU {labels['gpu']}" if labels.get("gpu") else name


def _short(labels: Mapping[str, str]) -> str:
    node = labels.get("node", "")[:SHOWN_LETTERS] or labels.get("service", "")
    return f"{node} GPU {labels['gpu']}" if labels.get("gpu") else node


def _key(labels: Mapping[str, str]) -> str:
    return " ".join(value for _, value in sorted(labels.items()))
