"""Every mode with every method."""

from collections.abc import Iterable
from functools import partial

import instructor
import pydantic
from checklist import error_of, script
from instructor import Mode
from instructor.core.exceptions import InstructorRetryException
from instructor.v2.core.providers import Provider
from instructor.v2.core.registry import mode_registry

from checks.instructor.client import ANN, ASKERS, BOB, ROME, Asker, City, Person, checks, ensure_same

PARALLEL = (Asker("openai", Mode.PARALLEL_TOOLS), Asker("anthropic", Mode.ANTHROPIC_PARALLEL_TOOLS))


def _create(asker: Asker) -> None:
    ensure_same([asker.client.create(**asker.asked(ANN))], ANN)


async def _create_async(asker: Asker) -> None:
    async with asker.async_client() as client:
        ensure_same([await client.create(**asker.asked(ANN))], ANN)


def _create_with_completion(asker: Asker) -> None:
    person, completion = asker.client.create_with_completion(**asker.asked(ANN))
    ensure_same([person], ANN)
    assert completion.id
    assert completion.model


async def _create_with_completion_async(asker: Asker) -> None:
    async with asker.async_client() as client:
        person, completion = await client.create_with_completion(**asker.asked(ANN))
    ensure_same([person], ANN)
    assert completion.id


def _create_partial(asker: Asker) -> None:
    *_, last = asker.client.create_partial(**asker.asked(ANN))
    assert (last.name, last.age) == (ANN.name, ANN.age)


async def _create_partial_async(asker: Asker) -> None:
    async with asker.async_client() as client:
        found = [each async for each in client.create_partial(**asker.asked(ANN))]
    assert (found[-1].name, found[-1].age) == (ANN.name, ANN.age)


def _many(asker: Asker) -> dict[str, object]:
    many = instructor.IterableModel(Person)
    return asker.asked(many(tasks=[ANN, BOB]), name=many.__name__)


def _create_iterable(asker: Asker) -> None:
    ensure_same(asker.client.create_iterable(**_many(asker)), ANN, BOB)


async def _create_iterable_async(asker: Asker) -> None:
    async with asker.async_client() as client:
        ensure_same([each async for each in client.create_iterable(**_many(asker))], ANN, BOB)


def _retries(asker: Asker) -> None:
    """The model's first answer has no age; the second one follows the complaint."""
    if asker.forgets:
        arguments = {**asker.asked(City(city="Rome"), name="Person"), "max_retries": 2}
        error = error_of(InstructorRetryException, partial(asker.client.create, **arguments))
        assert (error.n_attempts, type(error.failed_attempts[-1].exception)) == (3, pydantic.ValidationError)
        return
    bad = asker.turn(City(city="Rome"), "Person")
    messages = [{"role": "user", "content": script(turns=[bad, asker.turn(ANN)])}]
    ensure_same([asker.client.create(**{**asker.asked(ANN), "messages": messages, "max_retries": 2})], ANN)


METHODS = {
    "create()": (_create, _create_async),
    "create_with_completion()": (_create_with_completion, _create_with_completion_async),
    "create_partial()": (_create_partial, _create_partial_async),
    "create_iterable()": (_create_iterable, _create_iterable_async),
}
for asker in ASKERS:
    for name, (sync_check, async_check) in METHODS.items():
        checks.add(f"{asker.name}.{name}", partial(sync_check, asker))
        checks.add(f"{asker.name}.async {name}", partial(async_check, asker))
    checks.add(f"{asker.name}.create(max_retries=)", partial(_retries, asker))


def _in_parallel(asker: Asker) -> None:
    turns = {"calls": [["Person", ANN.model_dump()], ["City", ROME.model_dump()]]}
    messages = [{"role": "user", "content": script(**turns)}]
    arguments = {**asker.asked(ANN), "messages": messages, "response_model": Iterable[Person | City]}
    ensure_same(asker.client.create(**arguments), ANN, ROME)


for asker in PARALLEL:
    checks.add(f"{asker.name}.create()", partial(_in_parallel, asker))


def unchecked() -> list[str]:
    """Return the modes that the client has and no check uses."""
    used = {asker.name for asker in (*ASKERS, *PARALLEL)}
    modes = [(vendor, mode.name) for vendor in ("openai", "anthropic") for mode in mode_registry.get_modes_for_provider(Provider(vendor))]
    return [f"{vendor} {mode}" for vendor, mode in modes if not {f"{vendor} {mode}", f"{vendor} {vendor.upper()}_{mode}"} & used]
