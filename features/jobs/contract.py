"""gateway: work that nobody waits for, such as batches. A job has lines; a line is one request, and ends in one result."""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from features.files.contract import FileId
from shared.api.method import PEOPLE, Body, Method
from shared.types import MicroCredits, ModelName, Moment

#: A prefix by its kind, and 128 bits in base32.
JobId = Annotated[str, Meta(pattern=r"^(job|batch|resp)_[a-z2-7]{26}\Z")]
BatchEndpoint = Literal[
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/moderations", "/v1/rerank",
]  # fmt: skip
#: How long a batch may take.
BatchWindow = Literal["24h", "1h"]
#: OpenAI's limits; PostgreSQL stores no NUL.
MetadataName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[^\0]*\Z")]
MetadataText = Annotated[str, Meta(max_length=512, pattern=r"^[^\0]*\Z")]
Metadata = Annotated[dict[MetadataName, MetadataText], Meta(max_length=16)]
MAX_PAGE = 100


class JobKind(StrEnum):
    SINGLE = "single"
    BATCH = "batch"
    RESPONSE = "response"


class JobState(StrEnum):
    """The words of OpenAI's batches."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    CANCELLING = "cancelling"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class LineError(Body, frozen=True):
    """Why a line of an input file is refused."""

    code: str
    message: str
    #: From 1; None if it is about the file.
    line: int | None = None
    param: str | None = None


class JobFacts(Body, frozen=True):
    #: A JobId.
    id: str
    kind: JobKind
    endpoint: str
    state: JobState
    created_at: Moment
    expires_at: Moment
    #: None until its first line is read.
    model: ModelName | None = None
    #: Why it doesn't move, or why it was cancelled if nobody asked for that.
    waiting: str | None = None
    #: How many lines it has, and how many of them have an answer or an error.
    total: int = 0
    done: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_micro: MicroCredits = MicroCredits(0)
    #: FileIds. The output has the answers, the error file the errors; None until there is one.
    input_file: str | None = None
    output_file: str | None = None
    error_file: str | None = None
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    #: Of the first lines that are refused. In lists, only the first.
    errors: tuple[LineError, ...] = ()
    in_progress_at: Moment | None = None
    cancelling_at: Moment | None = None
    finalizing_at: Moment | None = None
    ended_at: Moment | None = None


class CreateBatch(Body, frozen=True):
    """Run each line of a file as a request, behind live requests and at the price of batches."""

    input_file: FileId
    endpoint: BatchEndpoint
    window: BatchWindow = "24h"
    metadata: Metadata = msgspec.field(default_factory=dict)
    #: A repeat returns the batch that it has already made. Over HTTP, the header Idempotency-Key does the same.
    idempotency_key: Annotated[str, Meta(min_length=1, max_length=255)] | None = None


class ListJobs(Body, frozen=True):
    """Jobs of the caller's account or organization, the newest first."""

    kind: JobKind | None = None
    #: Only those behind this one.
    after: JobId | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = MAX_PAGE


class Jobs(Body, frozen=True):
    jobs: tuple[JobFacts, ...]
    has_more: bool = False


class GetJob(Body, frozen=True):
    id: JobId


class CancelJob(Body, frozen=True):
    """Begin no other line. What has an answer keeps it, and is paid."""

    id: JobId


create_batch = Method("gateway.createBatch", CreateBatch, JobFacts, callers=PEOPLE)
list_jobs = Method("gateway.listJobs", ListJobs, Jobs, callers=PEOPLE)
get_job = Method("gateway.getJob", GetJob, JobFacts, callers=PEOPLE)
cancel_job = Method("gateway.cancelJob", CancelJob, JobFacts, callers=PEOPLE)
