"""What files add."""

from shared.features import Acts, Command, Feature

PATH = "/v1/files"
MAX_FILE_BYTES = 512 << 20
MAX_BATCH_BYTES = 200 << 20
#: What a form has beside its file, at most.
FORM_BYTES = 64 << 10
#: The kind of item of background work.
FILE = "file"

FEATURE = Feature(
    commands=(
        Command(
            name="files",
            section="Ask",
            place="features.files.cli.commands:files",
            summary="Store files on the mesh, encrypted for your account or organization.",
        ),
    ),
    large_bodies={PATH: MAX_FILE_BYTES + FORM_BYTES},
    items=(FILE,),
    acts=(
        Acts(
            meaning="a [file](../howto/files.md) deleted by a user; the target is the file",
            restricting=("file.delete",),
            why_not_replayed="files are not replayed; the restore's runbook says so",
        ),
    ),
)
