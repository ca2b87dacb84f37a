"""What jobs add."""

from features.files.feature import FORM_BYTES, MAX_BATCH_BYTES
from shared.features import Acts, Command, Feature

MESSAGE_BATCHES, PAGE_OF_FILES = "/v1/messages/batches", "/jobs/files"
#: Kinds of items of background work.
JOB, JOB_MODEL, LINE = "job", "job_model", "line"

FEATURE = Feature(
    needs=frozenset({"files"}),
    commands=(
        Command(
            name="batch",
            section="Ask",
            place="features.jobs.cli.commands:batch",
            summary="Run the requests of a file when the mesh has time, at a lower price.",
        ),
    ),
    large_bodies={MESSAGE_BATCHES: 32 << 20, PAGE_OF_FILES: MAX_BATCH_BYTES + FORM_BYTES},
    items=(JOB,),
    counted_items=(JOB_MODEL, LINE),
    acts=(
        Acts(
            meaning="batches of requests; the target is the batch",
            harmless=("batch.create",),
            restricting=("batch.cancel",),
            why_not_replayed="jobs are not replayed; what the restore brings back may be cancelled again",
        ),
    ),
)
