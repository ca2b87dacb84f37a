"""Files as the gateway keeps them."""

from collections.abc import AsyncIterator

from features.files import contract as files
from features.files.contract import FileFacts
from shared import errors
from shared.api import gateway
from shared.types import Credential


class FakeFiles:
    def __init__(self) -> None:
        super().__init__()
        #: Stored files and what of them can be read.
        self.files: list[tuple[FileFacts, bytes]] = []

    def _get_file(self, request: files.GetFile, _: Credential | None) -> FileFacts:
        for file, _content in self.files:
            if file.id == request.id:
                return file
        raise errors.NotFound("there is no such file")

    def _list_files(self, request: files.ListFiles, _: Credential | None) -> files.Files:
        left = [file for file, _ in self.files if request.after is None or file.id > request.after]
        return files.Files(tuple(left[:2]), has_more=len(left) > 2)

    async def _serve_http(self, request: gateway.HttpRequest, _: Credential | None) -> AsyncIterator[gateway.HttpPart]:
        for file, content in self.files:
            if request.path == f"/v1/files/{file.id}/content":
                yield gateway.HttpPart(content[:1], 200)
                yield gateway.HttpPart(content[1:])


FAKE = FakeFiles
