"""The messages of files, which are uploaded and downloaded over HTTP."""

from enum import StrEnum
from typing import Annotated, Literal

from msgspec import Meta

from shared.api.method import PEOPLE, Body, Method, Nothing
from shared.types import Moment

#: `file-` and 128 bits in base32.
FileId = Annotated[str, Meta(pattern=r"^file-[a-z2-7]{26}\Z")]
#: Of one message, and of one answer of OpenAI's API.
MAX_PAGE, MAX_LISTED = 1_000, 10_000


class FilePurpose(StrEnum):
    """OpenAI's words; the last four are what jobs write."""

    ASSISTANTS = "assistants"
    BATCH = "batch"
    FINE_TUNE = "fine-tune"
    VISION = "vision"
    USER_DATA = "user_data"
    EVALS = "evals"
    BATCH_OUTPUT = "batch_output"
    ASSISTANTS_OUTPUT = "assistants_output"
    FINE_TUNE_RESULTS = "fine-tune-results"
    #: Ours: nobody sees it.
    JOB_INPUT = "job_input"


#: What people may upload.
UPLOADED = tuple(purpose for purpose in FilePurpose if not any(word in purpose for word in ("_output", "results", "job_")))


class FileFacts(Body, frozen=True):
    #: A FileId.
    id: str
    name: str
    purpose: FilePurpose
    size: int
    created_at: Moment
    #: Then it is deleted; None: never.
    expires_at: Moment | None = None


class ListFiles(Body, frozen=True):
    """Files of the caller's account or organization."""

    purpose: FilePurpose | None = None
    #: Only those behind this one.
    after: FileId | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = MAX_PAGE
    order: Literal["asc", "desc"] = "desc"


class Files(Body, frozen=True):
    files: tuple[FileFacts, ...]
    has_more: bool = False


class GetFile(Body, frozen=True):
    id: FileId


class DeleteFile(Body, frozen=True):
    id: FileId


list_files = Method("gateway.listFiles", ListFiles, Files, callers=PEOPLE)
get_file = Method("gateway.getFile", GetFile, FileFacts, callers=PEOPLE)
delete_file = Method("gateway.deleteFile", DeleteFile, Nothing, callers=PEOPLE)
