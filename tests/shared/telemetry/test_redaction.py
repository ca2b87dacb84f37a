import base64
import time
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.identity import node_keys
from shared.telemetry import redaction
from tests.cases import case

KEY = "aip_live_" + "a1B2" * 11 + "zzzzz"
JWT = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (b'{"alg":"EdDSA"}', b'{"sub":"1"}', b"s" * 64))
SEED = node_keys.new_seed().decode()


class Login(msgspec.Struct):
    username: str
    password: str


@dataclass(frozen=True, slots=True)
class Prompt:
    prompt: str
    prompt_tokens: int


@pytest.mark.parametrize(
    "secret",
    [
        pytest.param(KEY, id="API key"),
        pytest.param(KEY[:24], id="half an API key"),
        pytest.param("aip_join_" + "xY-_9" * 8, id="ticket"),
        pytest.param(JWT, id="JWT"),
        pytest.param(SEED, id="nkey seed"),
        pytest.param("Bearer abc.def-123456", id="authorization header"),
    ],
)
def test_a_secret_is_masked_wherever_it_stands(secret: str) -> None:
    for around in ("{}", "a {} b", "key={}", '{{"key": "{}"}}', "https://host/path?q={}", "({})", "<{}>,"):
        with case(around):
            shown = redaction.text(around.format(secret))
            assert secret[-12:] not in shown
            assert redaction.MASK in shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("postgresql://aimesh:hunter2@db/x", "postgresql://aimesh:[redacted]@db/x", id="password of a URL"),
        pytest.param("GET /login?token=abc&next=/", "GET /login?token=[redacted]&next=/", id="token in a query"),
        pytest.param("password=hunter2 host=db", "password=[redacted] host=db", id="libpq text"),
        pytest.param("tls://s3cr3t@nats:4222", "tls://[redacted]@nats:4222", id="token of a NATS URL"),
        pytest.param("http://127.0.0.1:3001/readyz", "http://127.0.0.1:3001/readyz", id="a port is no password"),
        pytest.param("aip_live_ is the prefix", "aip_live_ is the prefix", id="the prefix alone is no key"),
        pytest.param("127 tokens in 3 s", "127 tokens in 3 s", id="counting tokens is allowed"),
    ],
)
def test_text(text: str, expected: str) -> None:
    assert redaction.text(text) == expected


def test_a_node_id_is_not_a_secret() -> None:
    node = node_keys.NodeKey(node_keys.new_seed()).id
    assert redaction.text(f"link to {node}") == f"link to {node}"


@pytest.mark.parametrize(
    "name",
    ["password", "token", "secret", "api_key", "apiKey", "X-Api-Key", "authorization", "prompt", "access_token", "cookie", "messages"],
)
def test_fields_with_the_name_of_a_secret_are_masked(name: str) -> None:
    assert redaction.fields({name: "hunter2"}) == {name: redaction.MASK}


@pytest.mark.parametrize("name", ["prompt_tokens", "tokens", "user", "first_token_ms", "model", "key_id"])
def test_other_fields_are_shown(name: str) -> None:
    assert redaction.fields({name: 7}) == {name: 7}


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        pytest.param(Login("ann", "hunter2"), {"username": "ann", "password": "[redacted]"}, id="struct"),
        pytest.param(Prompt("tell me", 3), {"prompt": "[redacted]", "prompt_tokens": 3}, id="dataclass"),
        pytest.param([{"token": "x"}, ("y",)], [{"token": "[redacted]"}, ["y"]], id="nested"),
        pytest.param(b"\x00\xff", "<2 bytes>", id="bytes are counted, not shown"),
        pytest.param(ValueError(f"bad key {KEY}"), "bad key aip_live_[redacted]", id="exception"),
        pytest.param(Login, "<class", id="class"),
        pytest.param(None, None, id="none"),
        pytest.param(float("nan"), "nan", id="not a number"),
    ],
)
def test_value(item: object, expected: object) -> None:
    shown = redaction.value(item)
    if isinstance(expected, str):
        assert isinstance(shown, str)
        assert shown.startswith(expected)
    else:
        assert shown == expected


def test_a_structure_without_end_is_cut() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert "…" in str(redaction.value({"loop": loop})) or "[...]" in str(redaction.value({"loop": loop}))


@given(st.text(max_size=200))
def test_no_text_breaks_it(text: str) -> None:
    redaction.text(text)


@pytest.mark.parametrize("piece", ["-eyJ-", "bearer ", "a://", "S", "token-", "aip_", " \t", "eyJaaaa."])
def test_hostile_text_costs_little(piece: str) -> None:
    text = piece * (20_000 // len(piece))
    before = time.process_time()
    redaction.text(text)
    assert time.process_time() - before < 0.5
