"""What an answer has to look like, as a grammar that llama.cpp was seen to read: of a format, or of calls that must be made."""

from dataclasses import replace
from pathlib import Path

from services.inference.jobs.generation_job import GenerationJob
from services.inference.structured_output import output_formats
from services.inference.structured_output.grammar_checker import Checker
from services.inference.supervision import engine_supervisor
from services.inference.tool_calls import tool_format
from services.inference.tool_calls.tool_format import ToolStyle
from shared.api.generation import ToolChoice


def checker(model: Path) -> Checker:
    """Tries grammars on this model's vocabulary, in a process of its own that starts with the first one."""
    return Checker(model, engine_supervisor.inherited())


async def shaped(job: GenerationJob, style: ToolStyle | None, tries: Checker) -> GenerationJob:
    """The job with its grammar, if it asks for any. Raises BadRequest for what cannot be had, and what ``Checker.check`` does."""
    if (grammar := grammar_of(job, style)) is None:
        return job
    await tries.check(grammar, field="format" if job.asked.format is not None else "tools")
    return replace(job, grammar=grammar)


def grammar_of(job: GenerationJob, style: ToolStyle | None) -> str | None:
    """Pure. Raises BadRequest."""
    if job.asked.format is not None:
        return output_formats.grammar_of(job.asked.format)
    # Of a model that takes no tools the engine says so.
    if job.asked.tool_choice is ToolChoice.REQUIRED and style is not None:
        wanted = tool_format.grammar_schema(job.asked.tools, style)
        return output_formats.grammar_of_schema(wanted.schema, field="tools", before=wanted.prefix, after=wanted.suffix)
    return None
