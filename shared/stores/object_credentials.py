"""The settings with which a program opens an object store; services and the stack declare the same ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from shared import config
from shared.config import Variable

AwsKeyId = Annotated[
    str | None, Variable("AWS_ACCESS_KEY_ID", "for s3://, like the next ones; by default the machine's identity", secret=True)
]
AwsSecret = Annotated[str | None, Variable("AWS_SECRET_ACCESS_KEY", "secret of AWS_ACCESS_KEY_ID", secret=True)]
AwsToken = Annotated[str | None, Variable("AWS_SESSION_TOKEN", "for temporary credentials", secret=True)]
AwsRegion = Annotated[str | None, Variable("AWS_REGION", "region of the bucket")]
AwsUrl = Annotated[str | None, Variable("AWS_ENDPOINT_URL", "S3 server other than Amazon's")]
GoogleFile = Annotated[Path | None, Variable("GOOGLE_APPLICATION_CREDENTIALS", "key file for gs://; by default the machine's identity")]

S3, GOOGLE = "s3://", "gs://"
#: Only kept for the kind of store that reads them: most machines have some for other programs.
STORES = {
    **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL"), S3),
    "GOOGLE_APPLICATION_CREDENTIALS": GOOGLE,
}


def of(settings: config.Settings) -> dict[str, str]:
    """Return those for ``objects.open_store``."""
    return {
        setting.variable.name: str(value)
        for setting in config.settings_of(type(settings))
        if setting.variable.name in STORES and (value := getattr(settings, setting.field)) is not None
    }


def mistakes(variable: str, address: str | None) -> Iterator[str]:
    """Yield why the setting is no address of a store."""
    if address is None:
        return
    scheme, is_url, place = address.partition("://")
    if not is_url and not address.startswith("/"):
        yield f"{variable}: {address} is not an absolute path"
    elif is_url and f"{scheme}://" not in (S3, GOOGLE):
        yield f"{variable} is neither a folder nor s3://bucket/prefix nor gs://bucket/prefix"
    elif is_url and (not place.partition("/")[0] or "@" in place.partition("/")[0]):
        yield f"{variable}: name a bucket, and put credentials into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
