"""How the sampling settings of a model's catalog entry reach its engine."""

from services.inference.engine import sampling
from tests.services.inference.backends.test_model_cache import A, B, Site, site
from tests.services.inference.standins import Reader, job

__all__ = ["site"]


async def test_an_answer_has_its_model_s_temperature_unless_the_caller_sets_one(site: Site) -> None:
    async with site.backend(site.entry(A, temperature=0.0, top_p=0.5, repeat_penalty=1.1), site.entry(B)) as backend:
        for asked in (job(model=A), job(model=A, temperature=1.5), job(model=A, top_p=1.0, repeat_penalty=1.0), job(model=B)):
            await backend.generate(asked, Reader())
    without = (sampling.DEFAULT_TEMPERATURE, sampling.DEFAULT_TOP_P, 1.0)
    drawn = [job.parameters for job in site.jobs]
    assert [(one.temperature, one.top_p, one.repeat_penalty) for one in drawn] == [
        (0.0, 0.5, 1.1),
        (1.5, 0.5, 1.1),
        (0.0, 1.0, 1.0),
        without,
    ]
