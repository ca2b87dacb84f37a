"""An environment file is parsed as Compose does. Unused variables and invalid values are reported with their lines."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli import main
from services import settings_check
from shared import errors
from stack import environment_file
from stack.environment_file import Assignment, FileMistake
from tests.deploy import compose_file

#: The example from the specification.
OF_THE_SPECIFICATION = """
# Database
DATABASE_URL=postgresql://user:pass@localhost:5432/ai_platform

# Services
AUTH_SERVICE_PORT=3001
GATEWAY_SERVICE_PORT=3002
INFERENCE_SERVICE_PORT=3003
METRICS_SERVICE_PORT=3004
WEB_SERVICE_PORT=3000

# AI Backends
OLLAMA_URL=http://localhost:11434
OPENAI_API_KEY=sk-...

# Rate Limiting
DEFAULT_RATE_LIMIT=100  # requests per hour
PREMIUM_RATE_LIMIT=1000 # requests per hour

# Monitoring
PROMETHEUS_PORT=9090
METRICS_ENABLED=true
"""


#: The real check runs a program that imports five services, which takes half a second.
ASK_SERVICES = environment_file._ask_services


@pytest.fixture(autouse=True)
def _ask_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_file, "_ask_services", settings_check.check)


def check_env(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main.aicli, ["stack", "check-env", str(path), *arguments])


def write(folder: Path, text: str) -> Path:
    (folder / "env").write_text(text, encoding="utf-8")
    return folder / "env"


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=b", "b"),
        ("export A=b", "b"),
        ("A = b ", "b"),
        ("A=b # why", "b"),
        ("A=b#c", "b#c"),
        ("A=", ""),
        ("A=# nothing", ""),
        ('A="b # c" # why', "b # c"),
        ("A='b'", "b"),
        ("A=it's", "it's"),
    ],
)
def test_a_line_is_read_as_compose_reads_it(line: str, value: str) -> None:
    assert environment_file.parse(line) == ([Assignment(1, "A", value)], [])


@pytest.mark.parametrize(("line", "literal"), [("A=$B", False), ('A="${B}"', False), ("A='$B'", True)])
def test_what_compose_replaces_is_no_value(line: str, literal: bool) -> None:
    ((one,), _) = environment_file.parse(line)
    assert one.is_literal is literal


def test_comments_are_skipped_and_other_lines_are_mistakes() -> None:
    assert environment_file.parse("\n# a\n  # b\nA\n1=2\n") == (
        [],
        [FileMistake(4, "write NAME=value, or # before a comment"), FileMistake(5, "write NAME=value, or # before a comment")],
    )


def test_the_file_of_the_specification_and_our_example_have_no_mistakes(tmp_path: Path) -> None:
    assert environment_file.check(write(tmp_path, OF_THE_SPECIFICATION), tmp_path) == []
    assert environment_file.check(compose_file.ROOT / ".env.example", tmp_path) == []


def test_all_mistakes_are_named_with_their_lines(tmp_path: Path) -> None:
    # The certificate and the NATS URL conflict with other settings, and are reported although some of those are invalid.
    text = """\
DEFAULT_RATELIMIT=100
FOO=bar
GATEWAY_SERVICE_PORT=70000
PREMIUM_RATE_LIMIT=many # requests
METRICS_ENABLED=true
METRICS_ENABLED=perhaps
METRICS_TOKEN=short-secret
TLS_CERT_FILE=/cert.pem
NATS_URL=nats://elsewhere.example.org:4222
QUEUE_SECONDS=$SOMETHING
MODELS=no-path
no assignment
"""
    found = environment_file.check(write(tmp_path, text), tmp_path)
    expected = [
        (1, "DEFAULT_RATELIMIT: nothing reads this variable; did you mean DEFAULT_RATE_LIMIT?"),
        (2, "FOO: nothing reads this variable"),
        (3, "GATEWAY_SERVICE_PORT: '70000' is not valid"),
        (4, "PREMIUM_RATE_LIMIT: 'many' is not valid"),
        (6, "METRICS_ENABLED: 'perhaps' is not valid: use true or false"),
        (6, "METRICS_ENABLED: line 5 sets it too, and only this line counts"),
        (7, "METRICS_TOKEN: its value is not valid"),
        (8, "TLS_CERT_FILE and TLS_KEY_FILE go together"),
        (9, "NATS_URL: elsewhere.example.org is not this machine"),
        (11, "MODELS: 'no-path' is not valid: write name=value, separated by commas"),
        (12, "write NAME=value"),
    ]
    assert [one.line for one in found] == [line for line, _ in expected], found
    assert all(one.text.startswith(text) for one, (_, text) in zip(found, expected, strict=True)), found
    assert "short-secret" not in str(found)


def test_variables_of_other_programs_are_left_alone(tmp_path: Path) -> None:
    text = "COMPOSE_PROFILES=openai\nDOCKER_HOST=x\nAICLI_PROFILE=x\nHTTPS_PROXY=http://p\nCUDA_VISIBLE_DEVICES=0\nOTEL_SERVICE_NAME=x\nTZ=UTC\n"
    assert environment_file.check(write(tmp_path, text), tmp_path) == []


def test_composes_own_file_may_set_only_what_compose_passes_on(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("x: ${WEB_SERVICE_PORT:-3000}\n", encoding="utf-8")
    (tmp_path / ".env").write_text("WEB_SERVICE_PORT=1\nNATS_PORT=2\nAICLI_PROFILE=x\n", encoding="utf-8")
    (found,) = environment_file.check(tmp_path / ".env", tmp_path)
    assert (found.line, found.text) == (2, "NATS_PORT: compose.yaml does not pass it on; set it in compose.override.yaml")


def test_secret_files_are_looked_for_unless_they_are_in_a_container(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("short", encoding="utf-8")
    text = "METRICS_TOKEN_FILE=token\nHF_TOKEN_FILE=/does/not/exist\nSMTP_URL_FILE=/in/a/container\n"
    found = environment_file.check(write(tmp_path, text), tmp_path)
    assert [(one.line, one.text.partition(":")[0]) for one in found] == [(1, "METRICS_TOKEN"), (2, "HF_TOKEN_FILE")]


def test_services_are_asked_in_their_own_program() -> None:
    environment = {"METRICS_TOKEN": "short", "GATEWAY_SERVICE_PORT": "70000"}
    assert ASK_SERVICES(environment) == settings_check.check(environment)


def test_the_command_fails_if_there_are_mistakes(tmp_path: Path) -> None:
    done = check_env(write(tmp_path, "A=1\nWEB_SERVICE_PORT=3000\n"))
    assert (done.exit_code, done.stdout) == (1, f"{tmp_path}/env:1: A: nothing reads this variable\n")
    done = check_env(tmp_path / "env", "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (1, [{"line": 1, "text": "A: nothing reads this variable"}])
    done = check_env(write(tmp_path, "WEB_SERVICE_PORT=3000\n"))
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path}/env: no mistakes\n")


def test_a_file_that_cannot_be_read_is_a_clear_error(tmp_path: Path) -> None:
    done = check_env(tmp_path / "nothing")
    assert done.exit_code == 2
    assert "cannot read" in done.stderr
    (tmp_path / "latin").write_bytes(b"A=\xe9")
    with pytest.raises(errors.BadRequest, match="not UTF-8"):
        environment_file.check(tmp_path / "latin", tmp_path)
    (tmp_path / "large").write_bytes(b"#" * (environment_file.MAX_FILE_BYTES + 1))
    with pytest.raises(errors.BadRequest, match="larger than"):
        environment_file.check(tmp_path / "large", tmp_path)
