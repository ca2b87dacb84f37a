"""`aicli guard`."""

import json
from pathlib import Path

import pytest

from cli.output.exit_codes import ExitCode
from shared.api import configuration
from shared.api.configuration import GuardMatch, GuardTest, GuardText
from shared.config_documents import GuardAction, GuardKind
from shared.types import KeyId
from tests.cli.account.test_policy import KEY, TEAM, stored
from tests.cli.conftest import Shell

__all__ = ["stored"]

CARD = GuardMatch(GuardKind.CARD, "", GuardAction.MASK, "mesh", 1, 6)
OWN = GuardMatch(GuardKind.OWN, "project", GuardAction.REPORT, "organization", 2, 1)


def asked(shell: Shell, found: GuardTest) -> list[GuardText]:
    requests: list[GuardText] = []

    def answer(request: GuardText) -> GuardTest:
        requests.append(request)
        return found

    shell.mesh.answer(configuration.test_guard, answer)
    return requests


def test_what_is_found_and_the_text_as_it_is_passed_on(shell: Shell) -> None:
    requests = asked(shell, GuardTest((CARD, OWN), "card [card]\nPRJ\n", refused=False))
    done = shell("guard", "test", "-", stdin="card 4111 1111 1111 1111\nPRJ\n")
    assert done.stdout.split("\n") == [
        "LINE  FOUND         ACTION  FROM", "1:6   Card numbers  mask    mesh", "2:1   project       report  organization",
        "card [card]", "PRJ", "",
    ]  # fmt: skip
    assert done.stderr == "The resulting text:\n"
    assert requests == [GuardText("card 4111 1111 1111 1111\nPRJ\n")]
    assert json.loads(shell("guard", "test", "-", "--json", stdin="x").stdout)["shown"] == "card [card]\nPRJ\n"


@pytest.mark.parametrize(
    ("found", "words", "stdout", "stderr"),
    [
        (GuardTest((), "x", refused=False), (), "", "Nothing was found.\n"),
        (GuardTest((OWN,), "x", refused=False), (), "2:1", ""),
        (GuardTest((CARD,), "", refused=True), (), "1:6", "The request would be refused.\n"),
        (GuardTest((CARD,), "before ", refused=True), ("--answer",), "before ", "The text would end before the first refused match:\n"),
    ],
)
def test_other_results(shell: Shell, found: GuardTest, words: tuple[str, ...], stdout: str, stderr: str) -> None:
    requests = asked(shell, found)
    done = shell("guard", "test", "-", *words, stdin="x")
    assert (done.exit_code, done.stderr) == (0, stderr)
    assert stdout in done.stdout
    assert requests[0].is_answer == bool(words)


def test_by_another_policy(shell: Shell, stored: object) -> None:
    requests = asked(shell, GuardTest((), "x", refused=False))
    assert shell("guard", "test", "-", "--organization", "acme", "--key", "ci", stdin="x").exit_code == 0
    assert requests == [GuardText("x", organization=TEAM, key=KeyId(KEY))]


def test_files_that_cant_be_tested(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "long").write_text("x" * (configuration.MAX_GUARD_CHARACTERS + 1), encoding="utf-8")
    done = shell("guard", "test", str(tmp_path / "binary"))
    assert (done.exit_code, "not UTF-8" in done.stderr) == (ExitCode.USAGE, True)
    assert "has more than 65536 characters" in shell("guard", "test", str(tmp_path / "long")).stderr
    assert shell("guard", "test", str(tmp_path / "missing")).exit_code == ExitCode.USAGE
