"""A worker of the stack that serves `echo` and misbehaves for prompts that begin with a special word.

    AIMESH_HOME=… python -m tests.chaos.faulty_worker

It is services.inference as `aicli worker --backend echo` starts it, but in this process.
"""

import asyncio
import copy
import os
import random
import signal
from pathlib import Path

from cli.machines import worker
from services.inference import __main__ as inference
from services.inference.backend_interface import Sink
from services.inference.backends import echo
from services.inference.jobs import GenerationJob
from shared import errors
from shared.api.generation import GenerationEnd

#: Crashes the engine.
POISON = "POISON"
#: Kills the whole process.
DEADLY = "DEADLY"
#: Makes half of the attempts fail before the first token.
FLAKY = "FLAKY"
#: Delays the first token.
LATE = "LATE"
LATE_SECONDS = 2.0
#: Sends all tokens at once.
FAST = "FAST"

#: Names a file with one byte for every attempt at a flaky or poisonous prompt, from all workers together.
ATTEMPTS_FILE = "CHAOS_ATTEMPTS_FILE"


class FaultyEcho(echo.EchoBackend):
    async def generate(self, job: GenerationJob, sink: Sink) -> GenerationEnd:
        match job.messages[-1].content.partition(" ")[0]:
            case word if word == POISON:
                _count()
                raise errors.ModelCrashed("the engine of echo ended")
            case word if word == DEADLY:
                os.kill(os.getpid(), signal.SIGKILL)
            case word if word == FLAKY:
                _count()
                if random.random() < 0.5:
                    raise errors.Unavailable("this attempt failed", hint="try again")
            case word if word == LATE:
                await asyncio.sleep(LATE_SECONDS)
            case word if word == FAST:
                fast = copy.copy(self)
                fast._token_seconds = 0.0
                return await super(FaultyEcho, fast).generate(job, sink)
            case _:
                pass
        return await super().generate(job, sink)


def _count() -> None:
    if path := os.environ.get(ATTEMPTS_FILE):
        with Path(path).open("ab") as file:
            file.write(b".")


def main() -> None:
    os.environ.update(worker.plan_environment(os.environ, {"INFERENCE_BACKEND": "echo"}))
    os.environ["INFERENCE_SERVICE_PORT"] = os.environ["CHAOS_PORT"]
    setattr(echo, "EchoBackend", FaultyEcho)  # noqa: B010 - mypy rejects an assignment
    inference.main()


if __name__ == "__main__":
    main()
