"""Moves PostgreSQL's clock, for tests in which months pass: unlike rows that become older, periods keep their start and so their ids.

A database with its own ``now()`` and ``clock_timestamp()`` reads them from a table. A restored copy has the table of its time: set it.
"""

from datetime import datetime

import asyncpg
import pytest

from shared.stores.server_sessions import ServerPlace

_PATH = "gateway, pg_catalog"
#: Functions and defaults keep the search path and the functions that they were made with.
_INSTALL = f"""
CREATE TABLE shifted_clock (shift interval NOT NULL);
INSERT INTO shifted_clock VALUES ('0');
CREATE FUNCTION now() RETURNS timestamptz LANGUAGE sql STABLE AS $$ SELECT pg_catalog.now() + shift FROM gateway.shifted_clock $$;
CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
AS $$ SELECT pg_catalog.clock_timestamp() + shift FROM gateway.shifted_clock $$;
DO $$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT pg_proc.oid::regprocedure AS function FROM pg_proc
        WHERE pronamespace = 'gateway'::regnamespace AND proconfig::text LIKE '%search_path%'
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = {_PATH}', found.function);
    END LOOP;
    FOR found IN
        SELECT adrelid::regclass AS relation, attname, pg_get_expr(adbin, adrelid) AS expression
        FROM pg_attrdef JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum JOIN pg_class ON pg_class.oid = adrelid
        WHERE relnamespace = 'gateway'::regnamespace AND pg_get_expr(adbin, adrelid) ~ 'now\\(\\)|clock_timestamp\\(\\)'
    LOOP
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT %s', found.relation, found.attname,
            regexp_replace(found.expression, '(pg_catalog\\.)?(now|clock_timestamp)\\(\\)', 'gateway.\\2()', 'g'));
    END LOOP;
END
$$;
"""


def patch_sessions(patch: pytest.MonkeyPatch) -> None:
    """Let stores use the clock of the database that they open."""
    settings = ServerPlace.settings
    patch.setattr(ServerPlace, "settings", lambda place, timeout: settings(place, timeout) | {"search_path": _PATH})


async def connect(url: str) -> asyncpg.Connection:
    """Open a session by the database's own clock, which sees all tenants."""
    return await asyncpg.connect(url, server_settings={"search_path": _PATH, "aimesh.tenant": "*"})


async def install(url: str) -> None:
    connection = await asyncpg.connect(url, server_settings={"search_path": "gateway"})
    try:
        await connection.execute(_INSTALL)
    finally:
        await connection.close()


async def set_clock(url: str, moment: datetime) -> None:
    connection = await connect(url)
    try:
        await connection.execute("UPDATE shifted_clock SET shift = $1::timestamptz - pg_catalog.clock_timestamp()", moment)
    finally:
        await connection.close()
