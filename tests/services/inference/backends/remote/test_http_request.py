import pytest

from services.inference.backends.remote import http_messages
from services.inference.backends.remote.http_messages import RequestWriter, ServerOrigin


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        pytest.param("http://h", ServerOrigin("h", 80, False, "h", ""), id="the least"),
        pytest.param("http://h:80/", ServerOrigin("h", 80, False, "h", ""), id="the port that everybody takes is not said"),
        pytest.param("https://h:443/v1/", ServerOrigin("h", 443, True, "h", "/v1"), id="a path in front of all paths"),
        pytest.param("https://h:80", ServerOrigin("h", 80, True, "h:80", ""), id="a port of its own"),
        pytest.param("http://[::1]:8000/v1", ServerOrigin("::1", 8000, False, "[::1]:8000", "/v1"), id="an IPv6 address"),
        pytest.param("http://[fe80::1%eth0]", ServerOrigin("fe80::1%eth0", 80, False, "[fe80::1]", ""), id="an IPv6 address with its zone"),
        pytest.param(
            "http://Bücher.example", ServerOrigin("xn--bcher-kva.example", 80, False, "xn--bcher-kva.example", ""), id="an umlaut"
        ),
        pytest.param("http://my_vllm:8000", ServerOrigin("my_vllm", 8000, False, "my_vllm:8000", ""), id="a container's name"),
        pytest.param("http://h/a b/ü%20", ServerOrigin("h", 80, False, "h", "/a%20b/%C3%BC%20"), id="a path that must be escaped"),
    ],
)
def test_origins(url: str, expected: ServerOrigin) -> None:
    assert http_messages.origin(url) == expected


@pytest.mark.parametrize(
    "url",
    ["h:8000", "ftp://h", "http://", "http://me:secret@h", "http://h:x", "http://h:99999", "http://" + "a" * 64, "http://[::1", "//h"],
)
def test_what_is_no_address_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValueError, match="the URL") as refused:
        http_messages.origin(url)
    assert "secret" not in str(refused.value)


def test_the_bytes_of_requests() -> None:
    requests = RequestWriter(http_messages.origin("http://h:8000/v1"), {"authorization": "Bearer key"})
    assert requests.get("models") == b"GET /v1/models HTTP/1.1\r\nhost: h:8000\r\nauthorization: Bearer key\r\n\r\n"
    assert requests.post_json("chat", b'{"a": 1}') == (
        b"POST /v1/chat HTTP/1.1\r\nhost: h:8000\r\nauthorization: Bearer key\r\n"
        b'content-type: application/json\r\ncontent-length: 8\r\n\r\n{"a": 1}'
    )
    assert requests.get("/health").startswith(b"GET /health HTTP/1.1\r\n"), "beside the API"
    assert "key" not in repr(requests)


@pytest.mark.parametrize(
    "value", ["secret\r\nx-evil: 1", "secret\nb", "secret\r", "secret\0b", " secret", "secret ", "", "schlüssel", "secret\x7f"]
)
def test_no_header_brings_another_one_along(value: str) -> None:
    with pytest.raises(ValueError, match="'authorization'") as refused:
        RequestWriter(http_messages.origin("http://h"), {"authorization": value})
    assert str(refused.value) == "the header 'authorization' has a character that is not allowed"


@pytest.mark.parametrize("name", ["a b", "a:", "a\r\nb", "", "A"])
def test_nor_does_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="the header"):
        RequestWriter(http_messages.origin("http://h"), {name: "a"})


@pytest.mark.parametrize("path", ["/a b", "/a\r\nx: y", "a b", "/ü"])
def test_nor_a_path(path: str) -> None:
    requests = RequestWriter(http_messages.origin("http://h"), {})
    with pytest.raises(ValueError, match="the path"):
        requests.get(path)
