import pytest
from aimesh import settings


@pytest.mark.parametrize(
    ("api_key", "base_url", "environment", "expected"),
    [
        pytest.param(None, None, {}, (settings.DEFAULT_BASE_URL, None), id="nothing said"),
        pytest.param(None, None, {"AIMESH_API_KEY": "k", "AIMESH_BASE_URL": "https://ai.example"}, ("https://ai.example", "k"), id="env"),
        pytest.param("a", "http://b:1", {"AIMESH_API_KEY": "k", "AIMESH_BASE_URL": "https://c"}, ("http://b:1", "a"), id="said wins"),
        pytest.param("k\n", " http://b:1/ ", {}, ("http://b:1", "k"), id="as a file or a copy has them"),
        pytest.param("k", "http://b:1/v1", {}, ("http://b:1", "k"), id="as OpenAI's clients want it"),
        pytest.param("k", "http://b:1/v1/", {}, ("http://b:1", "k"), id="with a slash"),
        pytest.param("k", "http://b:1/ai", {}, ("http://b:1/ai", "k"), id="behind a path of a proxy"),
        pytest.param("", "", {"AIMESH_API_KEY": "k"}, (settings.DEFAULT_BASE_URL, None), id="an empty text is none"),
        pytest.param("k", "http://[::1]:3000", {}, ("http://[::1]:3000", "k"), id="IPv6"),
    ],
)
def test_arguments_precede_the_environment(
    api_key: str | None, base_url: str | None, environment: dict[str, str], expected: tuple[str, str | None]
) -> None:
    assert (settings.read_base_url(base_url, environment), settings.read_api_key(api_key, environment)) == expected


@pytest.mark.parametrize(
    "base_url",
    [
        "localhost:3000", "ftp://host", "http://", "http://a:99999", "http://user:secret@host", "http://host?x=1", "http://host#x",
        "http://ho st", "http://host\n.example", "http://[::1", "file:///etc/passwd", "http://höst",
    ],
)  # fmt: skip
def test_invalid_url_is_refused_with_an_example(base_url: str) -> None:
    with pytest.raises(ValueError, match="base_url") as refused:
        settings.read_base_url(base_url, {})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("api_key", ["two words", "with\x00zero", "k\r\nx-evil: 1", "schlüssel"])
def test_invalid_key_is_refused_and_not_shown(api_key: str) -> None:
    with pytest.raises(ValueError, match="api_key has characters") as refused:
        settings.read_api_key(api_key, {})
    assert api_key not in str(refused.value)


def test_key_is_in_no_repr() -> None:
    assert "aip_live_secret" not in repr(settings.create_context("aip_live_secret", None, 2))
