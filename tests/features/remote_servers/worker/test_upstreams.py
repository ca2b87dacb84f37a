from pathlib import Path

import pytest

from features.remote_servers.worker import upstreams
from features.remote_servers.worker.upstreams import Dialect, Key, Secrets, Upstream
from shared import errors

KEY = "sk-very-secret-0123456789"
DIGEST = "0a" * 32


def parse(
    text: str, *, keys: dict[str, str] | None = None, private: bool = True, files: dict[str, str] | None = None
) -> tuple[Upstream, ...]:
    def read(name: str) -> str:
        if name not in (files or {}):
            raise FileNotFoundError(2, "No such file or directory")
        return (files or {})[name]

    return upstreams.parse(text, Secrets(keys or {}, private, read))


def test_upstreams_file() -> None:
    text = """
    [rack]
    url = "http://10.0.0.5:8000/v1"
    dialect = "vllm"
    key_file = "rack.key"
    prefix = "rack/"
    slots = 64
    idle_seconds = 20

    [cloud]
    url = "https://api.openai.com/v1"
    only_models = ["gpt-x", "gpt-y"]
    aliases = { "clever" = "gpt-x" }
    """
    rack, cloud = parse(text, keys={"cloud": "sk-cloud"}, files={"rack.key": f"{KEY}\n"})
    assert (rack.dialect, rack.key, rack.key_setting, rack.slots, rack.idle_seconds) == (Dialect.VLLM, Key(KEY), "key_file of rack", 64, 20)
    assert rack.offers("llama") == ("rack/llama",)
    assert (cloud.dialect, cloud.key, cloud.key_setting) == (Dialect.OPENAI, Key("sk-cloud"), "OPENAI_UPSTREAM_KEYS, cloud")
    assert [cloud.offers(name) for name in ("gpt-x", "gpt-y", "whisper")] == [("clever",), ("gpt-y",), ()]


def test_model_may_have_several_aliases() -> None:
    (one,) = parse('[a]\nurl = "http://h/v1"\nprefix = "p/"\n[a.aliases]\nfast = "m"\ncheap = "m"\n')
    assert one.offers("m") == ("fast", "cheap")
    assert one.offers("other") == ("p/other",)
    assert (one.key, one.dialect, one.slots) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "has 0 upstreams", id="an empty file"),
        pytest.param("[a\n", "not TOML", id="no TOML"),
        pytest.param("[[[[", "not TOML", id="brackets"),
        pytest.param('a = "http://h/v1"', "a: Expected `object`", id="no table"),
        pytest.param("[a]", "missing required field `url`", id="no URL"),
        pytest.param('["A b"]\nurl = "http://h"', "lower-case", id="a name with a blank"),
        pytest.param('[a]\nurl = "h:80"', "must be http", id="a URL without a scheme"),
        pytest.param('[a]\nurl = "ftp://h"', "must be http", id="another scheme"),
        pytest.param('[a]\nurl = "http://"', "must be http", id="no host"),
        pytest.param('[a]\nurl = "http://h:port"', "is not valid", id="a port that is none"),
        pytest.param('[a]\nurl = "http://[::1"', "is not valid", id="half an address"),
        pytest.param('[a]\nurl = "http://h/v1?key=x"', "no query", id="a query"),
        pytest.param(f'[a]\nurl = "http://{"a" * 64}"', "is not valid", id="a label of 64 characters"),
        pytest.param('[a]\nurl = "http://h"\ndialect = "klingon"', "Invalid enum value", id="an unknown dialect"),
        pytest.param('[a]\nurl = "http://h"\nslot = 1', "unknown field `slot`", id="a mistyped field"),
        pytest.param('[a]\nurl = "http://h"\nslots = 0', ">= 1", id="no slots"),
        pytest.param('[a]\nurl = "http://h"\nidle_seconds = 0', ">= 1", id="no timeouts"),
        pytest.param('[a]\nurl = "http://h"\nfirst_token_seconds = inf', "<= 3600", id="endless timeouts"),
        pytest.param('[a]\nurl = "http://h"\nfirst_token_seconds = nan', "a: ", id="timeouts that is no number"),
        pytest.param('[a]\nurl = "http://h"\nkey_file = "gone"', "cannot read gone: No such file", id="a key that is not there"),
        pytest.param('[a]\nurl = "http://h"\nkey_file = "empty"', "visible ASCII", id="an empty key"),
        pytest.param('[a]\nurl = "http://h"\nkey = "x"\nkey_file = "empty"', "given twice", id="two keys"),
        pytest.param(
            '[a]\nurl = "http://h"\nonly_models = ["x"]\naliases = { y = "z" }', "not among only_models", id="an alias of nothing"
        ),
        pytest.param(f'[a]\nurl = "http://h"\ndigest = "{DIGEST}"', "digest: name the model", id="a digest of any model"),
        pytest.param('[a]\nurl = "http://h"\nonly_models = ["x"]\ndigest = "5"', "$.digest", id="no digest"),
        pytest.param("\n".join(f'[a{n}]\nurl = "http://h"' for n in range(33)), "has 33 upstreams", id="too many"),
    ],
)
def test_invalid_upstreams_are_named(text: str, message: str) -> None:
    with pytest.raises(errors.BadSettings) as refused:
        parse(text, files={"empty": " \n"})
    assert message in refused.value.message
    assert "OPENAI_UPSTREAMS" in refused.value.message


def test_all_mistakes_are_reported_together() -> None:
    with pytest.raises(errors.BadSettings) as refused:
        parse('[a]\nurl = "h"\n[b]\nurl = "http://h"\ndialect = 5\n', keys={"c": "x"})
    assert all(word in refused.value.message for word in (" a: ", " b: ", "no upstream 'c'"))


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        pytest.param(f'[a]\nurl = "http://h"\nkey = "{KEY}"', {}, id="in a file that everybody can read"),
        pytest.param(f'[a]\nurl = "http://me:{KEY}@h/v1"', {}, id="in the URL"),
        pytest.param(f'[a]\nurl = "http://me:{KEY}@[h/v1"', {}, id="in a URL that is none"),
        pytest.param('[a]\nurl = "http://h"', {"a": f"{KEY}\r\nx: y"}, id="with a header behind it"),
        pytest.param('[a]\nurl = "http://h"', {"a": f"{KEY} "}, id="with a blank"),
        pytest.param(f'[a]\nurl = "http://h"\nkey = ["{KEY}"]', {}, id="in a list"),
        pytest.param(f'[a]\nurl = "http://h"\nkey = "{KEY}\n', {}, id="in a line that does not end"),
    ],
)
def test_misplaced_key_is_refused_and_not_shown(text: str, keys: dict[str, str]) -> None:
    with pytest.raises(errors.BadSettings) as refused:
        parse(text, keys=keys, private=False)
    assert KEY not in refused.value.message + refused.value.hint


def test_key_has_no_repr() -> None:
    (one,) = parse(f'[a]\nurl = "http://h"\nkey = "{KEY}"')
    assert one.key == Key(KEY)
    assert KEY not in repr(one) + str(one.key)


def test_the_provider_of_an_upstream() -> None:
    text = """
    [own]
    url = "http://10.0.0.5/v1"
    [forwards]
    url = "http://10.0.0.6/v1"
    external = true
    provider = "acme"
    """
    assert [(one.provider, one.external) for one in parse(text)] == [("own", None), ("acme", True)]
    with pytest.raises(errors.BadSettings, match="provider"):
        parse('[a]\nurl = "http://h"\nprovider = "Has Blanks"')


def test_the_region_of_an_upstream_is_a_label() -> None:
    assert [one.region for one in parse('[a]\nurl = "http://h"\nregion = "eu-central 1"\n[b]\nurl = "http://h"')] == ["eu-central 1", ""]
    for wrong in ("", "-x", "e" * 33, "e\\n"):
        with pytest.raises(errors.BadSettings, match="region"):
            parse(f'[a]\nurl = "http://h"\nregion = "{wrong}"')


def test_single_upstream_from_the_environment() -> None:
    one = upstreams.single("http://127.0.0.1:8000/v1", KEY)
    assert (one.name, one.dialect, one.key, one.offers("m")) == ("openai", None, Key(KEY), ("m",))
    with pytest.raises(errors.BadSettings, match=r"(?s)OPENAI_BASE_URL.*OPENAI_API_KEY"):
        upstreams.single("127.0.0.1", "two words")


# --- files ----------------------------------------------------------------------------------------------------------


def test_key_files_are_relative_to_the_upstreams_file(tmp_path: Path) -> None:
    (tmp_path / "a.key").write_text(f"{KEY}\n")
    file = tmp_path / "upstreams.toml"
    file.write_text('[a]\nurl = "http://h/v1"\nkey_file = "a.key"\n')
    (one,) = upstreams.read(file, {})
    assert one.key == Key(KEY)


@pytest.mark.parametrize(("mode", "may"), [(0o600, True), (0o640, True), (0o644, False)])
def test_world_readable_file_must_not_hold_a_key(tmp_path: Path, mode: int, may: bool) -> None:
    file = tmp_path / "upstreams.toml"
    file.write_text(f'[a]\nurl = "http://h/v1"\nkey = "{KEY}"\n')
    file.chmod(mode)
    if may:
        assert upstreams.read(file, {})[0].key == Key(KEY)
        return
    with pytest.raises(errors.BadSettings, match="chmod 600"):
        upstreams.read(file, {})


def test_unreadable_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(errors.BadSettings, match=r"cannot read .* No such file"):
        upstreams.read(tmp_path / "gone.toml", {})
    with pytest.raises(errors.BadSettings, match="cannot read"):
        upstreams.read(tmp_path, {})
    (tmp_path / "large.toml").write_bytes(b"#" * (upstreams.MAX_FILE_BYTES + 1))
    with pytest.raises(errors.BadSettings, match="larger than"):
        upstreams.read(tmp_path / "large.toml", {})
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(errors.BadSettings, match="not UTF-8"):
        upstreams.read(tmp_path / "bytes.toml", {})


def test_endless_key_file_is_read_only_up_to_a_limit(tmp_path: Path) -> None:
    file = tmp_path / "upstreams.toml"
    file.write_text('[a]\nurl = "http://h/v1"\nkey_file = "/dev/zero"\n')
    with pytest.raises(errors.BadSettings, match="visible ASCII"):
        upstreams.read(file, {})


def test_the_digest_of_the_only_model() -> None:
    (one,) = parse(f'[a]\nurl = "http://h"\nonly_models = ["x"]\ndigest = "{DIGEST}"')
    assert one.digest == DIGEST
