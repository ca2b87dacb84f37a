"""URLs as users of redis-py write them."""

from pathlib import Path

import pytest

from shared.stores import valkey_url
from shared.stores.valkey_url import ValkeyUrl


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("redis://", ValkeyUrl()),
        ("redis://cache", ValkeyUrl(host="cache")),
        ("redis://cache:6380/", ValkeyUrl(host="cache", port=6380)),
        ("redis://cache/3", ValkeyUrl(host="cache", database=3)),
        ("redis://cache/3?db=4", ValkeyUrl(host="cache", database=4)),
        ("redis://:p%40ss@cache", ValkeyUrl(host="cache", password="p@ss")),
        ("redis://ada:p@[::1]:7", ValkeyUrl(host="::1", port=7, username="ada", password="p")),
        ("redis://cache?username=ada&password=a%252Fb", ValkeyUrl(host="cache", username="ada", password="a%2Fb")),
        ("rediss://:p@cache:6380/0", ValkeyUrl(host="cache", port=6380, tls=True, password="p")),
        ("rediss://cache?ssl_ca_certs=/etc/ca.pem", ValkeyUrl(host="cache", tls=True, ca_file=Path("/etc/ca.pem"))),
        ("unix:///run/valkey.sock", ValkeyUrl(path="/run/valkey.sock")),
        ("unix:///run/a%20b.sock?db=2&password=p", ValkeyUrl(path="/run/a b.sock", database=2, password="p")),
        ("unix://:p@/run/valkey.sock", ValkeyUrl(path="/run/valkey.sock", password="p")),
        (
            "redis+sentinel://ada:p,@s1,[::1]:7,s3/main?db=2&sentinel_password=q",
            ValkeyUrl(
                host="s1",
                port=26379,
                username="ada",
                password="p,",
                database=2,
                primary="main",
                sentinel_password="q",
                nodes=(("s1", 26379), ("::1", 7), ("s3", 26379)),
            ),
        ),
        (
            "rediss+cluster://:p@h1,h2:6380?ssl_ca_certs=/etc/ca.pem",
            ValkeyUrl(host="h1", tls=True, ca_file=Path("/etc/ca.pem"), password="p", is_cluster=True, nodes=(("h1", 6379), ("h2", 6380))),
        ),
    ],
)
def test_what_a_url_says(url: str, meant: ValkeyUrl) -> None:
    assert valkey_url.parse(url) == meant


@pytest.mark.parametrize(
    "url",
    [
        "", "cache", "http://:s3cret@cache", "redis://:s3cret@cache:port", "redis://ada:s3cret", "redis://:s3cret@[cache",
        "redis://cache/s3cret", "redis://cache/-1", "redis://cache?db=s3cret", "redis://cache?s3cretless=s3cret", "unix://", "unix://?db=1",
        "unix:///a%00b", "redis://a%00b", "redis://a..b", "redis://cache:99999", "redis+sentinel://:s3cret@s1,s2",
        "redis+cluster://:s3cret@h1/1", "redis+cluster://h1,h2:s3cret", "redis+s3cret://h1", "unix+cluster://h1",
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said_without_a_secret(url: str) -> None:
    with pytest.raises(ValueError, match=r"^(its|it is|it has) ") as refused:
        valkey_url.parse(url)
    assert "s3cret" not in str(refused.value).replace("s3cretless", "")
    assert refused.value.__cause__ is None


def test_an_address_does_not_show_its_password() -> None:
    assert "s3cret" not in repr(valkey_url.parse("redis://:s3cret@cache"))
