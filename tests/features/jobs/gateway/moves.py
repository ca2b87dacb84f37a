"""Moves jobs that are at their end, as the gateways' background work does."""

from features.jobs.gateway.store import JobStore


async def move_all(jobs: JobStore) -> None:
    for job in await jobs.list_movable():
        await jobs.move(job)
