"""Every field, line and helper of chats and generations."""

import asyncio
from functools import partial
from typing import Any

import ollama
from checklist import script

from checks.ollama.client import MODEL, PNG, ROME, SCHEMA, SCRIPTED, TOOL, chat, checks, client, messages, refusal, report

# --- options --------------------------------------------------------------------------------------------------------------------

#: Option -> what reaches the model, by the name there.
REACHING: dict[str, tuple[Any, str]] = {
    "num_predict": (77, "max_tokens"),
    "temperature": (0.25, "temperature"),
    "top_p": (0.5, "top_p"),
    "top_k": (9, "top_k"),
    "seed": (7, "seed"),
    "repeat_penalty": (1.25, "repetition_penalty"),
    "presence_penalty": (0.5, "presence_penalty"),
    "frequency_penalty": (-0.5, "frequency_penalty"),
}
#: They choose how a model is loaded, or samplers that engines no longer have.
WITHOUT_EFFECT = (
    "numa", "num_ctx", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mmap", "use_mlock",
    "embedding_only", "num_thread", "num_keep", "tfs_z", "typical_p", "repeat_last_n", "mirostat", "mirostat_tau", "mirostat_eta",
    "penalize_newline",
)  # fmt: skip


def _reaches(option: str, value: Any, name: str) -> None:
    assert report(name, options={option: value}) == value


def _is_ignored(option: str) -> None:
    assert chat(options={option: 1}).message.content == "Hello."


for option, (value, name) in REACHING.items():
    checks.add(f"options.{option}", partial(_reaches, option, value, name))
for option in WITHOUT_EFFECT:
    checks.add(f"options.{option}", partial(_is_ignored, option))


@checks("options.stop")
def _() -> None:
    assert report("stop", options={"stop": ["END", "STOP"]}) == ["END", "STOP"]
    assert report("stop", options=ollama.Options(stop=["END"])) == ["END"]


# --- chats ----------------------------------------------------------------------------------------------------------------------


@checks("chat.model", "chat.messages", "chat answer.model", "chat answer.message", "message.role", "message.content")
def _() -> None:
    answer = chat()
    assert (answer.model, answer.message.role, answer.message.content) == (SCRIPTED, "assistant", "Hello.")
    assert answer["message"]["content"] == "Hello."
    said = report("messages", {"role": "system", "content": "Be short."}, {"role": "assistant", "content": "Yes."})
    assert [(one["role"], one["content"]) for one in said[:2]] == [("system", "Be short."), ("assistant", "Yes.")]
    assert client.chat(f"{SCRIPTED}:latest", messages(say="Hi.")).message.content == "Hi."


@checks(
    "chat.stream", "chat answer.done", "chat answer.created_at", "chat answer.done_reason", "chat answer.total_duration",
    "chat answer.load_duration", "chat answer.prompt_eval_count", "chat answer.prompt_eval_duration", "chat answer.eval_count",
    "chat answer.eval_duration",
)  # fmt: skip
def _() -> None:
    *parts, last = chat(turn={"say": ["pieces ", "of an ", "answer"]}, stream=True)
    assert "".join(part.message.content or "" for part in parts) == "pieces of an answer"
    assert len(parts) == 3
    assert not any(part.done for part in parts)
    assert (last.done, last.done_reason) == (True, "stop")
    assert last.created_at
    assert (last.prompt_eval_count or 0) > 0
    assert last.eval_count == 3
    assert (last.total_duration or 0) >= (last.prompt_eval_duration or 0) >= 0
    assert last.load_duration == 0
    assert (last.eval_duration or 0) > 0
    assert chat(turn={"say": "a", "finish": "length"}).done_reason == "length"


@checks("chat.format")
def _() -> None:
    assert report("response_format", format="json")["type"] == "json_object"
    assert report("response_format", format=SCHEMA)["json_schema"]["schema"] == SCHEMA
    assert report("response_format", format="") is None


@checks("chat.think", "message.thinking")
def _() -> None:
    answer = chat(turn={"think": "Let me see.", "say": "Hello."}, think=True)
    assert (answer.message.thinking, answer.message.content) == ("Let me see.", "Hello.")
    streamed = list(chat(turn={"think": "Let me see.", "say": "Hello."}, think=True, stream=True))
    assert "".join(part.message.thinking or "" for part in streamed) == "Let me see."
    assert chat(turn={"think": "Let me see.", "say": "Hello."}, think=False).message.thinking is None
    assert report("reasoning_effort", think="low") == "low"
    said = report("messages", {"role": "assistant", "content": "Yes.", "thinking": "I know."})
    assert "I know." in str(said[0])


@checks("chat.tools", "message.tool_calls", "message.tool_name")
def _() -> None:
    answer = chat(turn={"calls": [ROME, ["get_weather", {"city": "Bern"}]]}, tools=[TOOL])
    calls = answer.message.tool_calls or ()
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("get_weather", {"city": "Rome"}),
        ("get_weather", {"city": "Bern"}),
    ]
    # The answer goes back as it came, and so do the results: without ids.
    asked = messages(calls=[ROME, ["get_weather", {"city": "Bern"}]])
    results = [{"role": "tool", "content": weather, "tool_name": "get_weather"} for weather in ("sunny", "rain")]
    last = client.chat(SCRIPTED, [*asked, answer.message, *results], tools=[TOOL])
    assert last.message.content == "Results: sunny, rain; images: 0"
    streamed = list(chat(turn={"calls": [ROME]}, tools=[TOOL], stream=True))
    assert [call.function.arguments for part in streamed for call in part.message.tool_calls or ()] == [{"city": "Rome"}]


@checks("chat(tools=[function])")
def _() -> None:
    def get_weather(city: str) -> str:
        """Say the weather.

        Args:
          city: The name of the city.
        """
        return city

    (call,) = chat(turn={"calls": [ROME]}, tools=[get_weather]).message.tool_calls or ()
    assert get_weather(**call.function.arguments) == "Rome"


@checks("message.images")
def _() -> None:
    asked = messages(report=["messages"])
    asked[0]["images"] = [PNG]
    assert "image_url" in (client.chat(SCRIPTED, asked).message.content or "")


@checks("chat.logprobs", "chat.top_logprobs", "chat answer.logprobs")
def _() -> None:
    logprobs = chat(turn={"say": ["Hel", "lo."]}, logprobs=True, top_logprobs=2).logprobs or ()
    assert [one.token for one in logprobs] == ["Hel", "lo."]
    assert all(one.logprob < 0 and len(one.top_logprobs or ()) == 2 for one in logprobs)
    assert chat().logprobs is None


@checks("chat.options", "chat.keep_alive", "generate.options", "generate.keep_alive")
def _() -> None:
    assert chat(options={"temperature": 0.5}, keep_alive="5m").message.content == "Hello."
    assert client.generate(SCRIPTED, script(say="Hi."), options={"num_ctx": 4096}, keep_alive=-1).response == "Hi."
    loaded = client.chat(SCRIPTED, [], keep_alive=0)
    assert (loaded.done, loaded.done_reason) == (True, "load")


@checks("AsyncClient.chat()", "AsyncClient.generate()")
def _() -> Any:
    async def run() -> None:
        asking = ollama.AsyncClient()
        parts = [part async for part in await asking.chat(SCRIPTED, messages(say="a b"), stream=True)]
        assert "".join(part.message.content or "" for part in parts) == "a b"
        answers = await asyncio.gather(*(asking.generate(SCRIPTED, script(say=f"n{number}")) for number in range(8)))
        assert [answer.response for answer in answers] == [f"n{number}" for number in range(8)]

    return run()


# --- generations ----------------------------------------------------------------------------------------------------------------


@checks("generate.model", "generate.prompt", "generate answer.response", "generate.system")
def _() -> None:
    assert client.generate(SCRIPTED, script(say="Hi.")).response == "Hi."
    said = client.generate(SCRIPTED, script(report=["messages"]), system="Be short.").response or ""
    assert "Be short." in said
    assert client.generate(SCRIPTED, "").done_reason == "load"


@checks("generate.stream", "generate.think", "generate answer.thinking")
def _() -> None:
    *parts, last = client.generate(SCRIPTED, script(think="Hm.", say=["a ", "b"]), stream=True, think=True)
    assert "".join(part.response or "" for part in parts) == "a b"
    assert "".join(part.thinking or "" for part in parts) == "Hm."
    assert (last.done, last.response) == (True, "")


@checks("generate.format", "generate.logprobs", "generate.top_logprobs", "generate answer.logprobs")
def _() -> None:
    answer = client.generate(SCRIPTED, script(report=["response_format"]), format=SCHEMA, logprobs=True, top_logprobs=1)
    assert "json_schema" in (answer.response or "")
    assert answer.logprobs


@checks("generate.images")
def _() -> None:
    assert "image_url" in (client.generate(SCRIPTED, script(report=["messages"]), images=[PNG]).response or "")


@checks("generate.raw")
def _() -> None:
    assert client.generate(MODEL, "The sea is", raw=True, options={"num_predict": 4}).eval_count == 4


@checks("generate.suffix")
def _() -> None:
    # The default model can't fill gaps.
    assert "suffix" in refusal(lambda: client.generate(MODEL, "def add(", suffix="return c")).error


@checks("generate.template", "generate.context", "generate answer.context")
def _() -> None:
    assert "template" in refusal(lambda: client.generate(SCRIPTED, "hi", template="{{ .Prompt }}")).error
    assert "context" in refusal(lambda: client.generate(SCRIPTED, "hi", context=[1, 2])).error
    # An empty one asks for what happens anyway.
    assert client.generate(SCRIPTED, script(say="Hi."), template="", context=[]).context is None


@checks(
    "generate.width", "generate.height", "generate.steps", "generate answer.image", "generate answer.completed", "generate answer.total"
)
def _() -> None:
    answer = client.generate(SCRIPTED, script(say="Hi."), width=64, height=64, steps=1)
    assert (answer.response, answer.image, answer.completed, answer.total) == ("Hi.", None, None, None)


@checks("ResponseError")
def _() -> None:
    unknown = refusal(lambda: client.chat("no-such-model", messages(say="Hi.")))
    assert (unknown.status_code, "no-such-model" in unknown.error) == (404, True)
    wrong = refusal(lambda: chat(options={"temperature": [99]}))
    assert (wrong.status_code, "options.temperature" in wrong.error) == (400, True)
    refused = refusal(lambda: list(chat(turn={"say": "Hi."}, options={"top_p": [7]}, stream=True)))
    assert refused.status_code == 400
