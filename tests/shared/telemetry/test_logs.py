import itertools
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from shared import context
from shared.identity import node_keys
from shared.telemetry import logs
from tests.cases import case


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_says_when_where_what_and_for_which_request(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("auth", node="UABC")
    request = context.RequestContext(context.new_request_id(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    token = context.current.set(request)
    try:
        logs.get(part="users").info("user registered", tier="free")
    finally:
        context.current.reset(token)
    (line,) = _lines(capsys)
    assert list(line) == ["ts", "level", "service", "event", "node", "request_id", "trace_id", "part", "tier"]
    assert str(line.pop("ts")).endswith("Z")
    assert line == {
        "level": "info",
        "service": "auth",
        "event": "user registered",
        "node": "UABC",
        "request_id": str(request.request_id),
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "part": "users",
        "tier": "free",
    }


def test_a_node_in_a_shared_process_names_itself(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("test", node="U1")
    logs.get(service="gateway", node="U2").info("ready")
    (line,) = _lines(capsys)
    assert (line["service"], line["node"]) == ("gateway", "U2")


def test_an_exception_is_one_field_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("auth")
    try:
        raise ValueError("the password=hunter2 is wrong")
    except ValueError:
        logs.get().exception("call failed", method="loginUser")
    (line,) = _lines(capsys)
    assert line["level"] == "error"
    assert str(line["exception"]).startswith("Traceback")
    assert "ValueError" in str(line["exception"])
    assert "hunter2" not in str(line)


@pytest.mark.parametrize("name", ["uvicorn.error", "nats", "asyncio", "anything.else"])
def test_what_libraries_log_has_the_same_form(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("web")
    logging.getLogger(name).warning("slow: %s", "Bearer abcdefghijk")
    (line,) = _lines(capsys)
    assert line["service"] == "web"
    assert line["level"] == "warning"
    assert line["event"] == "slow: Bearer [redacted]"


SECRETS = {
    "API key": "aip_live_" + "Zz09" * 12 + "q",
    "ticket": "aip_join_" + "Zz09" * 20,
    "JWT": "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiIxMjM0In0.Zz09Zz09Zz09Zz09Zz09",
    "nkey seed": node_keys.new_seed().decode(),
    "bearer": "Bearer Zz09.Zz09-Zz09_Zz09",
}


@dataclass(frozen=True, slots=True)
class Request:
    prompt: str
    note: str


def _raise(text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError as cause:
        raise RuntimeError("outer") from cause


def _by_exception(secret: str) -> None:
    try:
        _raise(f"bad {secret}")
    except RuntimeError:
        logs.get().exception("failed")
        logging.getLogger("library").exception("failed")


WAYS: dict[str, Callable[[str], None]] = {
    "event": lambda secret: logs.get().info(f"got {secret}"),
    "field": lambda secret: logs.get().info("got", value=secret),
    "name of a field": lambda secret: logs.get().info("got", **{secret: 1}),
    "bound field": lambda secret: logs.get(value=secret).info("got"),
    "nested": lambda secret: logs.get().info("got", value={"a": [{"b": (secret,)}], secret: 1}),
    "struct": lambda secret: logs.get().info("got", value=Request(prompt=secret, note=secret)),
    "error": lambda secret: logs.get().error("got", error=ValueError(secret)),
    "traceback": _by_exception,
    "library": lambda secret: logging.getLogger("library").warning(secret),
    "library's arguments": lambda secret: logging.getLogger("library").warning("got %s and %r", secret, {"token": secret}),
    "warning": lambda secret: warnings.warn(secret, UserWarning, stacklevel=1),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("layout", ["json", "text"])
def test_no_secret_gets_out_by_any_way(layout: str, capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("auth", "debug", format=layout)
    for (way, log), (kind, secret) in itertools.product(WAYS.items(), SECRETS.items()):
        with case((way, kind)):
            log(secret)
            captured = capfd.readouterr()
            assert captured.out
            assert secret[-16:] not in captured.out + captured.err


def test_uvicorns_line_per_request_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("web")
    logging.getLogger("uvicorn.access").info("GET /healthz 200")
    assert _lines(capsys) == []


@pytest.mark.parametrize(
    ("level", "shown"), [("debug", ["d", "i", "w", "e"]), ("info", ["i", "w", "e"]), ("warning", ["w", "e"]), ("ERROR", ["e"])]
)
def test_level(level: str, shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("auth", level)
    logger = logs.get()
    logger.debug("d")
    logger.info("i")
    logger.warning("w")
    logger.error("e")
    assert [line["event"] for line in _lines(capsys)] == shown


def test_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("auth", format="text")
    logs.get().info("user registered", tier="free", password="hunter2")
    out = capsys.readouterr().out
    assert "user registered" in out
    assert "hunter2" not in out
    with pytest.raises(json.JSONDecodeError):
        json.loads(out)


@pytest.mark.parametrize("value", ["\udc80", "naïve – 日本", float("nan"), object(), {1: {2}}, b"x", Exception("e")])
def test_any_value_gives_one_line(value: object, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("auth")
    logs.get().info("odd", value=value, level_of_it="a\nb")
    captured = capsys.readouterr()
    assert captured.err == ""
    assert len(captured.out.splitlines()) == 1


def test_a_lone_surrogate_reaches_an_ascii_terminal() -> None:
    program = "from shared.telemetry import logs; logs.configure('auth'); logs.get().info('odd', value=chr(0xDC80) + chr(0xE9))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": "."}, timeout=30
    )
    assert json.loads(done.stdout)["value"] == "\udc80é"
    assert done.stderr == b""


def test_it_is_silent_until_configured(capsys: pytest.CaptureFixture[str]) -> None:
    logs.get().error("nobody listens")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_importing_it_is_cheap() -> None:
    program = "import sys; from shared import telemetry; print([m for m in ('structlog', 'prometheus_client') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True, env={"PYTHONPATH": "."}, timeout=120)
    assert done.stdout.strip() == "[]"
