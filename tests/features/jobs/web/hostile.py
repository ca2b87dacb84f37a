"""Jobs with a hostile name. See ``tests.services.web.pages.admin.hostile``."""

from typing import Any

import msgspec

from features.jobs.contract import JobState, LineError
from features.jobs.lists import FILE_NAME
from shared.types import ModelName
from tests.features.jobs.web.fake_mesh import batch


def seed(mesh: Any, name: str) -> dict[str, str]:
    """Return values for the paths of pages."""
    refused = LineError(name, name, 1, name)
    jobs = [batch(0, model=ModelName(name), waiting=name), batch(1, JobState.FAILED, errors=(refused,), endpoint=name)]
    mesh.jobs = [msgspec.structs.replace(job, metadata={FILE_NAME: name}) for job in jobs]
    return {"job_id": mesh.jobs[1].id}
