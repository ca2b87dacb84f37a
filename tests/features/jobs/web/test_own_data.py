import json

from features.jobs.contract import JobFacts, JobKind, JobState
from tests.services.web.browser import Browser
from tests.services.web.fake_mesh import FakeMesh
from tests.services.web.fake_organisations import NOW
from tests.services.web.pages.account.test_own_data import export, unpacked


async def test_archive_has_all_jobs_of_the_user(alice: Browser, mesh: FakeMesh) -> None:
    expected = [f"batch_{letter * 26}" for letter in "edcba"]
    mesh.most_jobs = 2
    mesh.jobs += [JobFacts(job, JobKind.BATCH, "/v1/embeddings", JobState.COMPLETED, NOW, NOW, output_file="file-1") for job in expected]
    found = json.loads(unpacked(await export(alice))["jobs.json"])
    assert [job["id"] for job in found] == expected
    assert found[0].items() >= {"state": "completed", "endpoint": "/v1/embeddings", "outputFile": "file-1"}.items()
