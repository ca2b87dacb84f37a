"""Runs SQL as an administrator does in psql, with psql's search path."""

from typing import Any

import asyncpg


async def run(url: str, statement: str, *args: Any) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement, *args)
    finally:
        await connection.close()


async def value(url: str, query: str, *args: Any) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query, *args)
    finally:
        await connection.close()
