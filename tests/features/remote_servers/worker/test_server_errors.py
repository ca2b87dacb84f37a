import pytest

from features.remote_servers.worker.rules import server_errors
from features.remote_servers.worker.rules.server_errors import RefusalSource
from features.remote_servers.worker.upstreams import Key, Upstream
from shared import errors

KEY = "sk-very-secret-0123456789"
SOURCE = RefusalSource("upstream vllm", "url of vllm", Upstream(name="vllm", url="http://h", key=Key(KEY), key_setting="key_file of vllm"))
#: 2026-11-20 12:00:00 UTC
NOON = 1795176000.0


def openai(message: str, code: object = None) -> bytes:
    quoted = "null" if code is None else str(code) if isinstance(code, int) else f'"{code}"'
    return f'{{"error": {{"message": "{message}", "type": "x", "code": {quoted}}}}}'.encode()


@pytest.mark.parametrize(
    ("status", "body", "kind", "said", "again"),
    [
        pytest.param(400, openai("top_k is unknown"), errors.BadRequest, "top_k is unknown", False, id="a bad request, in its words"),
        pytest.param(422, b'{"detail": "too long"}', errors.BadRequest, "too long", False, id="FastAPI's word for it"),
        pytest.param(422, b'{"detail": [{"loc": ["body"]}]}', errors.BadRequest, "loc", False, id="and its list"),
        pytest.param(
            400,
            openai("This model's maximum context length is 4096 tokens."),
            errors.ContextExceeded,
            "4096",
            False,
            id="a prompt that is too long for vLLM",
        ),
        pytest.param(401, openai("bad key"), errors.Unavailable, "refuses this worker's key", False, id="a wrong key"),
        pytest.param(403, b"", errors.Unavailable, "refuses this worker's key", False, id="a key that may not"),
        pytest.param(402, b"", errors.Unavailable, "payment", False, id="an unpaid account"),
        pytest.param(404, openai("The model `x` does not exist"), errors.UnknownModel, "does not exist", False, id="a model that is gone"),
        pytest.param(404, b'{"error": "model \\"x\\" not found"}', errors.UnknownModel, "not found", False, id="in Ollama's words"),
        pytest.param(404, b'{"detail": "Not Found"}', errors.Unavailable, "does not know this path", False, id="a wrong address"),
        pytest.param(413, b"", errors.TooLarge, "size", False, id="too large"),
        pytest.param(429, openai("slow down"), errors.Overloaded, "slow down", True, id="too many requests"),
        pytest.param(429, openai("pay", "insufficient_quota"), errors.Unavailable, "payment", False, id="no credit, though it is 429"),
        pytest.param(500, b"oops", errors.Unavailable, "status 500: oops", False, id="a failure"),
        pytest.param(
            500,
            b'{"error": "the input length exceeds the context length"}',
            errors.ContextExceeded,
            "exceeds",
            False,
            id="Ollama's for too long",
        ),
        pytest.param(502, b"<html>", errors.Unavailable, "<html>", True, id="a gateway without a server"),
        pytest.param(503, b'{"error": "loading", "error_type": "x"}', errors.Unavailable, "loading", True, id="a server that starts"),
        pytest.param(504, b"", errors.Unavailable, "not ready", True, id="a gateway that lost timeouts"),
        pytest.param(307, b"", errors.Unavailable, "redirects to another address", False, id="a redirect"),
        pytest.param(500, b'{"error": "\xff"}', errors.Unavailable, "error", False, id="words that are no text"),
        pytest.param(
            400, openai("prompt is too long: 9 bytes > 5 maximum"), errors.ContextExceeded, "9 bytes", False, id="of Anthropic, or a mesh"
        ),
        pytest.param(418, b"\xff\x00", errors.Unavailable, "status 418", False, id="what nobody expects"),
    ],
)
def test_what_a_status_means(status: int, body: bytes, kind: type[errors.AimeshError], said: str, again: bool) -> None:
    refusal = server_errors.judge(SOURCE, status, body)
    assert type(refusal.error) is kind
    assert refusal.error.message.removeprefix("prompt is too long: ").startswith("upstream vllm ")
    assert refusal.error.message.startswith("prompt") is (kind is errors.ContextExceeded)
    assert said in refusal.error.message
    assert refusal.retryable is again


def test_a_refused_key_names_the_setting_and_not_the_servers_words() -> None:
    error = server_errors.judge(SOURCE, 401, openai("wrong key: sk-very-****")).error
    assert "key_file of vllm" in error.hint
    assert "sk-very" not in error.message


@pytest.mark.parametrize("status", [400, 404, 413, 429, 500, 503])
@pytest.mark.parametrize("body", [openai(f"no {KEY} no").decode(), f"no {KEY} no", f'{{"detail": "{KEY}"}}', KEY * 40])
def test_a_key_is_never_shown(status: int, body: str) -> None:
    error = server_errors.judge(SOURCE, status, body.encode()).error
    assert KEY not in error.message + error.hint
    assert KEY not in repr(SOURCE)


def test_a_missing_key_is_named() -> None:
    without = RefusalSource("server rack", "the URL", Upstream(name="rack", url="http://h", key_setting="the key of server rack"))
    error = server_errors.judge(without, 401, b"").error
    assert (error.message, error.hint) == ("server rack needs a key (status 401)", "set the key of server rack")


def test_words_are_cut_and_on_one_line() -> None:
    error = server_errors.judge(SOURCE, 400, b"a\nb\x1b[31m\x00" + b"x" * 100_000).error
    assert error.message.isprintable()
    assert len(error.message) < server_errors.MAX_WORDS + 100


@pytest.mark.parametrize(
    ("header", "seconds", "again"),
    [
        pytest.param(None, None, True, id="no word of when"),
        pytest.param("2", 2.0, True, id="soon"),
        pytest.param("0.5", 0.5, True, id="in half a second"),
        pytest.param("4", 4.0, False, id="later than a caller should wait here"),
        pytest.param("Fri, 20 Nov 2026 12:00:02 GMT", 2.0, True, id="a date"),
        pytest.param("Fri, 20 Nov 2026 11:00:00 GMT", 0.0, True, id="a date that has passed"),
        pytest.param("999999999999", 3600.0, False, id="in thirty thousand years"),
        pytest.param("-5", None, True, id="nonsense"),
        pytest.param("\u00b2", None, True, id="a digit that is no number"),
        pytest.param("1" * 1000, 3600.0, False, id="a number of a thousand digits"),
    ],
)
def test_retry_after(header: str | None, seconds: float | None, again: bool) -> None:
    refusal = server_errors.judge(SOURCE, 429, b"", header, now=NOON)
    assert (refusal.retry_after_seconds, refusal.retryable) == (seconds, again)
    assert refusal.error.retry_after_seconds == (server_errors.DEFAULT_RETRY_AFTER_SECONDS if seconds is None else seconds)


@pytest.mark.parametrize(
    ("event", "kind", "said"),
    [
        pytest.param(openai("prompt too long", 400), errors.BadRequest, "prompt too long", id="vLLM gives a status"),
        pytest.param(openai("out of memory"), errors.Unavailable, "out of memory", id="OpenAI gives words"),
        pytest.param(openai("x", 99), errors.Unavailable, "x", id="a code that is no status"),
        pytest.param(b'{"error": "boom", "error_type": "generation"}', errors.Unavailable, "boom", id="TGI gives a string"),
        pytest.param(b'{"error": {}}', errors.Unavailable, "error", id="nothing is said"),
        pytest.param(b'{"error": ' + b"[" * 100_000, errors.Unavailable, "[[[", id="a hundred thousand brackets"),
    ],
)
def test_an_error_in_the_midst_of_an_answer(event: bytes, kind: type[errors.AimeshError], said: str) -> None:
    error = server_errors.judge_event(SOURCE, event)
    assert type(error) is kind
    assert said in error.message
