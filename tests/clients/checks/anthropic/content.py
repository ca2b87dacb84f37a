"""Messages and their blocks."""

from functools import partial
from typing import Any

from checks.anthropic.client import HELLO, IMAGE, PNG, ROME, TOOL, Json, ask, checks, is_refused, report, text, user

CACHE = {"type": "ephemeral"}
CITATION = {
    "type": "char_location",
    "cited_text": "a",
    "document_index": 0,
    "document_title": None,
    "start_char_index": 0,
    "end_char_index": 1,
}


def read(*blocks: Json, **fields: Any) -> Any:
    """Return the content of the message that reached the model for these blocks of the user."""
    return report("messages", user(*blocks), {"role": "assistant", "content": "Yes."}, **fields)[0]["content"]


def result(*blocks: Json, tools: Any = (TOOL,), ignores: tuple[str, ...] = (), **fields: Any) -> list[Json]:
    """Return the messages that reached the model for a call and its result of these blocks."""
    use = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Rome"}}
    returned = {"type": "tool_result", "tool_use_id": "toolu_1", "content": list(blocks), **fields}
    messages = ({"role": "user", "content": "Weather?"}, {"role": "assistant", "content": [use]}, user(returned))
    found = report("messages", *messages, {"role": "assistant", "content": "Yes."}, tools=tools, ignores=ignores)
    return list(found[1:-2])


# --- messages -------------------------------------------------------------------------------------------------------------------


@checks("create.messages", "create.messages[user]", "create.messages[assistant]", "create.messages.content")
def _() -> None:
    messages = [{"role": "user", "content": "One."}, {"role": "assistant", "content": "Two."}]
    assert report("messages", *messages)[:-1] == messages


@checks("create.messages[system]")
def _() -> None:
    messages = [
        {"role": "user", "content": "One."},
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "Two."},
        {"role": "system", "content": [text("Be "), text("kind.")]},
    ]
    first, second, last = report("messages", *messages)
    # vLLM gets later instructions as text of the user.
    assert (first["content"], second["content"]) == ("One.\n\nBe brief.", "Two.")
    assert last["content"].startswith("Be kind.\n\n")


@checks("create.messages.content[text]", "create.messages.content.text")
def _() -> None:
    assert read(text("One. "), text("Two.")) == "One. Two."


@checks("create.messages.content.cache_control")
def _() -> None:
    assert read({**text("One."), "cache_control": CACHE}, ignores=("messages.content.cache_control",)) == "One."


@checks("create.messages.content.citations")
def _() -> None:
    assert read({**text("One."), "citations": [CITATION]}, ignores=("messages.content.citations",)) == "One."
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Two."}, "citations": {"enabled": True}}
    assert "Two." in read(document, ignores=("messages.content.citations",))


# --- images, documents, search results ------------------------------------------------------------------------------------------


@checks(
    "create.messages.content[image]",
    "create.messages.content.source",
    "create.messages.content.source[base64]",
    "create.messages.content.source.data",
    "create.messages.content.source.media_type",
)
def _() -> None:
    parts = read(text("Look: "), IMAGE)
    assert parts[0]["text"] == "Look: "
    assert parts[1]["image_url"]["url"].startswith("data:image/png;base64,")


@checks("create.messages.content.transformations", "create.messages.content.transformations.oversized_image")
def _() -> None:
    image = {**IMAGE, "transformations": {"oversized_image": "downsize"}}
    assert len(read(text("Look: "), image, ignores=("messages.content.transformations",))) == 2


@checks("create.messages.content[document]", "create.messages.content.source[text]")
def _() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "The text."}
    assert "The text." in read({"type": "document", "source": source})


@checks("create.messages.content.title", "create.messages.content.context")
def _() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "The text."}
    found = read({"type": "document", "source": source, "title": "The title", "context": "The context"})
    assert all(part in found for part in ("The text.", "The title", "The context"))


@checks("create.messages.content.source[content]", "create.messages.content.source.content")
def _() -> None:
    assert "The text." in read({"type": "document", "source": {"type": "content", "content": "The text."}})
    found = read({"type": "document", "source": {"type": "content", "content": [text("The text."), IMAGE]}})
    assert [part["type"] for part in found[:2]] == ["text", "image_url"]


@checks("create.messages.content[search_result]", "create.messages.content.content", "create.messages.content.content[text]")
def _() -> None:
    found = read({"type": "search_result", "source": "https://a.example", "title": "The title", "content": [text("The text.")]})
    assert all(part in found for part in ("https://a.example", "The title", "The text."))


REFUSED_SOURCES = {
    "url": ({"type": "url", "url": "https://a.example/a.png"}, "is a URL"),
    "file": ({"type": "file", "file_id": "file_1"}, "must be the data itself"),
}


def _is_refused_source(kind: str, source: Json, sentence: str) -> None:
    is_refused(sentence, user({"type": kind, "source": source}))
    returned = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": kind, "source": source}]}
    use = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}}
    is_refused(sentence, {"role": "user", "content": "Weather?"}, {"role": "assistant", "content": [use]}, user(returned), tools=[TOOL])


for name, (source, sentence) in REFUSED_SOURCES.items():
    field = "url" if name == "url" else "file_id"
    checks.add(f"create.messages.content.source[{name}]", partial(_is_refused_source, "image", source, sentence))
    checks.add(f"create.messages.content.source.{field}", partial(_is_refused_source, "document", source, sentence))
checks.add(
    "create.messages.content.source[base64]: PDF",
    partial(_is_refused_source, "document", {"type": "base64", "media_type": "application/pdf", "data": PNG}, "is a PDF"),
)


REFUSED = {
    "source": (
        "the gateway fetches no URLs and keeps no files, and models read no PDF; send the text or the image itself",
        [
            "create.messages.content.source[url]",
            "create.messages.content.source.url",
            "create.messages.content.source[file]",
            "create.messages.content.source.file_id",
            "create.messages.content.source[base64]: PDF",
        ],
    ),
}

# --- thinking -------------------------------------------------------------------------------------------------------------------


@checks("create.messages.content[thinking]", "create.messages.content.thinking", "create.messages.content.signature")
def _() -> None:
    thought = {"type": "thinking", "thinking": "Let me see.", "signature": "abc"}
    found = report("messages", {"role": "user", "content": "One."}, {"role": "assistant", "content": [thought, text("Two.")]})
    # vLLM's name of the field.
    assert found[1] == {"role": "assistant", "content": "Two.", "reasoning": "Let me see."}


@checks("create.messages.content[redacted_thinking]", "create.messages.content.data")
def _() -> None:
    answer = {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "abc"}, text("Two.")]}
    found = report("messages", {"role": "user", "content": "One."}, answer, ignores=("messages.content[redacted_thinking]",))
    assert found[1] == {"role": "assistant", "content": "Two."}


# --- calls and results ----------------------------------------------------------------------------------------------------------


@checks(
    "create.messages.content[tool_use]",
    "create.messages.content.id",
    "create.messages.content.name",
    "create.messages.content.input",
    "create.messages.content[tool_result]",
    "create.messages.content.tool_use_id",
)
def _() -> None:
    call, returned = result(text("18 degrees"))
    assert call["tool_calls"][0]["id"] == returned["tool_call_id"] == "toolu_1"
    assert call["tool_calls"][0]["function"]["name"] == "get_weather"
    assert call["tool_calls"][0]["function"]["arguments"].replace(" ", "") == '{"city":"Rome"}'
    assert returned["content"] == "18 degrees"


@checks("create.messages.content.is_error")
def _() -> None:
    assert "Error" in result(text("No such city"), is_error=True)[1]["content"]


@checks("create.messages.content.content[image]")
def _() -> None:
    call, returned, shown = result(text("A picture: "), IMAGE)
    assert (call["role"], returned["role"], shown["role"]) == ("assistant", "tool", "user")
    assert [part["type"] for part in shown["content"]].count("image_url") == 1


@checks("create.messages.content.content[document]")
def _() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "The text."}
    assert "The text." in result({"type": "document", "source": source, "title": "A"})[1]["content"]


@checks("create.messages.content.content[search_result]")
def _() -> None:
    found = {"type": "search_result", "source": "https://a.example", "title": "A", "content": [text("The text.")]}
    assert "The text." in result(found)[1]["content"]


@checks("create.messages.content.content[tool_reference]")
def _() -> None:
    reference = {"type": "tool_reference", "tool_name": "get_weather"}
    assert result(text("A"), reference, ignores=("messages.content.content[tool_reference]",))[1]["content"] == "A"


@checks("create.messages.content.content[browser_state]")
def _() -> None:
    state = {"type": "browser_state", "tabs": [{"tab_id": "1", "title": "A", "url": "https://a.example"}]}
    assert result(text("A"), state, ignores=("messages.content.content[browser_state]",))[1]["content"] == "A"


@checks("create.messages.content.toolset_name")
def _() -> None:
    assert result(text("A"), toolset_name="browser", ignores=("messages.content.toolset_name",))[1]["content"] == "A"


@checks("create.messages.content.caller")
def _() -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}, "caller": {"type": "direct"}}
    messages = ({"role": "user", "content": "One."}, {"role": "assistant", "content": [use]})
    returned = user({"type": "tool_result", "tool_use_id": "toolu_1", "content": "A"})
    found = report("messages", *messages, returned, tools=[TOOL], ignores=("messages.content.caller",))
    assert found[1]["tool_calls"][0]["function"]["name"] == ROME[0]


# --- blocks of the tools of Anthropic's servers -----------------------------------------------------------------------------------


def _block_is_ignored(kind: str, role: str, block: Json) -> None:
    messages = [{"role": "user", "content": "One."}, {"role": "assistant", "content": [text("Two.")]}]
    messages[0 if role == "user" else 1]["content"] = [{"type": kind, **block}, text("Two.")]
    answer = ask(*messages, turn=HELLO, ignores=(f"messages.content[{kind}]",))
    assert answer.content[0].text == HELLO["say"]


SERVER_BLOCKS: dict[str, Json] = {
    "server_tool_use": {"id": "srvtoolu_1", "name": "web_search", "input": {"query": "weather"}},
    "web_search_tool_result": {
        "tool_use_id": "srvtoolu_1",
        "content": [{"type": "web_search_result", "title": "A", "url": "https://a.example", "encrypted_content": "abc"}],
    },
    "web_fetch_tool_result": {
        "tool_use_id": "srvtoolu_1",
        "content": {"type": "web_fetch_tool_result_error", "error_code": "unavailable"},
    },
    "code_execution_tool_result": {
        "tool_use_id": "srvtoolu_1",
        "content": {"type": "code_execution_result", "content": [], "return_code": 0, "stderr": "", "stdout": "1"},
    },
    "bash_code_execution_tool_result": {
        "tool_use_id": "srvtoolu_1",
        "content": {"type": "bash_code_execution_result", "content": [], "return_code": 0, "stderr": "", "stdout": "1"},
    },
    "text_editor_code_execution_tool_result": {
        "tool_use_id": "srvtoolu_1",
        "content": {"type": "text_editor_code_execution_create_result", "is_file_update": False},
    },
    "tool_search_tool_result": {
        "tool_use_id": "srvtoolu_1",
        "content": {"type": "tool_search_tool_search_result", "tool_references": [{"type": "tool_reference", "tool_name": "a"}]},
    },
}
for name, block in SERVER_BLOCKS.items():
    checks.add(f"create.messages.content[{name}]", partial(_block_is_ignored, name, "assistant", block))
checks.add("create.messages.content[container_upload]", partial(_block_is_ignored, "container_upload", "user", {"file_id": "file_1"}))
