"""The setting of files. The credentials of the store are the gateway's."""

from collections.abc import Iterator
from typing import Annotated

from shared.config import Settings, Variable
from shared.stores import object_credentials


class FileSettings(Settings, frozen=True, kw_only=True):
    files_url: Annotated[
        str | None,
        Variable(
            "FILES_URL",
            "where large files are kept, encrypted: a folder of all gateways, s3://bucket/prefix or gs://bucket/prefix; unset: none",
            on_all_replicas=True,
            is_store=True,
            folder="files",
        ),
    ] = None

    def mistakes(self) -> Iterator[str]:
        yield from object_credentials.mistakes("FILES_URL", self.files_url)


#: Service -> what it reads.
SETTINGS = {"gateway": FileSettings}
