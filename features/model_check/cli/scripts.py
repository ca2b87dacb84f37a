"""The 50 scripts: what a model is asked, with which tools, and what it must call. Data only.

Each has one right answer, because the user names every value. A tuple stands for values that are equally right.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Schema = Mapping[str, Any]

#: Before each of them.
SYSTEM = (
    "You work with tools. Call a tool if one does what the user asks, with exactly the values that the user names, and without asking back."
    " Call several tools at once if the user asks for several things. If no tool is needed, answer in words."
)


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str
    parameters: Schema


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Script:
    name: str
    tools: tuple[Tool, ...]
    ask: str
    #: In any order; none: it must answer in words.
    right: tuple[Call, ...]
    #: What the model has called before, and the results.
    done: tuple[tuple[Call, str], ...] = ()
    #: What an answer in words contains.
    says: str = ""


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def _text(description: str) -> Schema:
    return {"type": "string", "description": description}


def _choice(*values: str) -> Schema:
    return {"type": "string", "enum": [*values]}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _tool(name: str, description: str, /, **properties: Schema) -> Tool:
    return Tool(name, description, _object(**properties))


def _call(tool: Tool, /, **arguments: object) -> Call:
    return Call(tool.name, arguments)


_WHOLE, _NUMBER, _YES_NO = {"type": "integer"}, {"type": "number"}, {"type": "boolean"}
_STRING = {"type": "string"}
_MONEY = _choice("USD", "EUR", "GBP", "JPY", "CHF")

WEATHER = _tool("get_weather", "Get the weather of a city.", city=_text("Its English name."), unit=_choice("celsius", "fahrenheit"))
TIME = _tool("get_time", "Get the present time.")
READ = _tool("read_file", "Read a text file.", path=_text("Relative to the project."))
WRITE = _tool("write_file", "Write a text file. An existing one is replaced.", path=_text("Relative to the project."), content=_STRING)
EDIT = _tool("edit_file", "Replace a text in a file, once.", path=_STRING, old=_text("The exact text."), new=_text("What replaces it."))
LIST = _tool("list_files", "List the files of a folder.", folder=_STRING, recursive=_YES_NO)
SEARCH = _tool("search_code", "Search the project with a regular expression.", pattern=_STRING, folder=_text("Where to search."))
RUN = _tool("run_command", "Run a shell command.", command=_text("The whole line."), timeout_seconds=_WHOLE)
EVENT = _tool(
    "create_event", "Add an event to the calendar.",
    title=_STRING, start=_text("As in 2026-03-01T09:30."), minutes=_WHOLE, guests=_list(_text("An email address.")),
)  # fmt: skip
EMAIL = _tool("send_email", "Send an email.", to=_list(_text("An email address.")), subject=_STRING, body=_STRING)
CONVERT = _tool("convert_money", "Convert an amount between currencies.", amount=_NUMBER, source=_MONEY, target=_MONEY)
LIGHT = _tool(
    "set_light", "Set a lamp.",
    room=_choice("kitchen", "bedroom", "office"), brightness={"type": "integer", "minimum": 0, "maximum": 100},
    color=_object(red=_WHOLE, green=_WHOLE, blue=_WHOLE),
)  # fmt: skip
ORDER = _tool(
    "place_order", "Order goods.",
    customer=_object(name=_STRING, address=_object(street=_STRING, city=_STRING, zip=_STRING)),
    items=_list(_object(sku=_STRING, quantity=_WHOLE)),
)  # fmt: skip
QUERY = _tool(
    "query_table", "Read rows of a table.",
    table=_STRING, columns=_list(_STRING), limit=_WHOLE,
    filters=_list(_object(column=_STRING, operator=_choice("=", "<", ">", "like"), value=_STRING)),
)  # fmt: skip
ALARM = _tool(
    "set_alarm", "Set an alarm that repeats each week.",
    time=_text("As in 07:05."), days=_list(_choice("mon", "tue", "wed", "thu", "fri", "sat", "sun")),
)  # fmt: skip
TRANSLATE = _tool("translate", "Translate a text.", text=_text("As it is."), language=_choice("de", "fr", "es", "ja"))
ADD = _tool("add_numbers", "Add numbers exactly.", numbers=_list(_NUMBER))
TICKET = _tool(
    "create_ticket", "File a ticket.",
    title=_STRING, priority=_choice("low", "normal", "high"), labels=_list(_STRING), is_public=_YES_NO,
)  # fmt: skip
STOCK = _tool("get_stock_price", "Get the price of a stock.", symbol=_text("As at the exchange."))
TRANSFER = _tool("transfer_money", "Move money between two of the user's accounts.", source=_STRING, target=_STRING, amount=_NUMBER)
MATRIX = _tool("multiply_matrices", "Multiply two matrices.", left=_list(_list(_NUMBER)), right=_list(_list(_NUMBER)))
BRANCH = _tool("delete_branch", "Delete a git branch.", name=_STRING, force=_YES_NO)
SETTING = _tool(
    "change_setting", "Change a setting.",
    key=_STRING, value={"type": ["string", "null"], "description": "null removes it."},
)  # fmt: skip
PLACE = _tool("mark_place", "Mark a place on the map.", label=_STRING, position=_object(latitude=_NUMBER, longitude=_NUMBER))

_FILES = (READ, WRITE, EDIT, LIST, SEARCH, RUN)
_OFFICE = (EVENT, EMAIL, TRANSLATE, TICKET, CONVERT)
_HOME = (LIGHT, ALARM, WEATHER, TIME)

SCRIPTS = (
    # One tool, and one of several.
    Script("one tool", (WEATHER,), "What is the weather in Paris, in celsius?", (_call(WEATHER, city="Paris", unit="celsius"),)),
    Script("no arguments", (TIME,), "What time is it?", (_call(TIME),)),
    Script("one of four", _HOME, "How warm is it in Tokyo? In fahrenheit, please.", (_call(WEATHER, city="Tokyo", unit="fahrenheit"),)),
    Script("no arguments, one of four", _HOME, "Tell me the present time.", (_call(TIME),)),
    Script("file to read", _FILES, "Show me the file src/main.py.", (_call(READ, path="src/main.py"),)),
    Script("file to list", _FILES, "List the folder docs, with all folders below it.", (_call(LIST, folder="docs", recursive=True),)),
    Script("not recursive", _FILES, "List only the folder tests itself, not recursively.", (_call(LIST, folder="tests", recursive=False),)),
    Script("command", _FILES, "Run `git status --short` with a timeout of 30 seconds.",
        (_call(RUN, command="git status --short", timeout_seconds=30),)),
    Script("one of many", (*_FILES, *_OFFICE, *_HOME, STOCK), "What does a share with the symbol NVDA cost?",
        (_call(STOCK, symbol="NVDA"),)),
    Script("one of twenty", (*_FILES, *_OFFICE, *_HOME, ADD, ORDER, QUERY, STOCK, BRANCH),
        "Delete the branch feature/login, without force.",
        (_call(BRANCH, name="feature/login", force=False),)),
    # Enums, numbers and yes or no.
    Script("two enums", _OFFICE, "Convert 250 US dollars to Swiss francs.", (_call(CONVERT, amount=250, source="USD", target="CHF"),)),
    Script("fraction", (CONVERT, ADD), "How many euros are 19.95 pounds sterling?",
        (_call(CONVERT, amount=19.95, source="GBP", target="EUR"),)),
    Script("numbers", (ADD, MATRIX), "Add 1.5, -2, 40 and 0.25.", (_call(ADD, numbers=[1.5, -2, 40, 0.25]),)),
    Script("large number", (TRANSFER, CONVERT), "Move 1250000.5 from the account savings to the account checking.",
        (_call(TRANSFER, source="savings", target="checking", amount=1_250_000.5),)),
    Script("negative numbers", (PLACE, WEATHER), "Mark latitude -33.8568, longitude 151.2153 as Opera.",
        (_call(PLACE, label="Opera", position={"latitude": -33.8568, "longitude": 151.2153}),)),
    Script("force", (BRANCH, RUN), "Delete the branch old-api by force.", (_call(BRANCH, name="old-api", force=True),)),
    Script("null", (SETTING,), "Remove the setting proxy.url.", (_call(SETTING, key="proxy.url", value=None),)),
    Script("digits as text", (SETTING,), "Change the setting http.port to 8080.", (_call(SETTING, key="http.port", value="8080"),)),
    # Lists and objects.
    Script("list of enums", _HOME, "Set an alarm at 06:45 on Monday, Wednesday and Friday.",
        (_call(ALARM, time="06:45", days=["mon", "wed", "fri"]),)),
    Script("nested object", _HOME, "Set the lamp in the office to 40 percent, in red 255, green 128, blue 0.",
        (_call(LIGHT, room="office", brightness=40, color={"red": 255, "green": 128, "blue": 0}),)),
    Script("objects in objects", (ORDER, EMAIL),
        "Order 2 of A-100 and 5 of B-7 for Ada Byron, 12 Mill Lane, London, zip code NW1 6XE.",
        (_call(ORDER, customer={"name": "Ada Byron", "address": {"street": "12 Mill Lane", "city": "London", "zip": "NW1 6XE"}},
            items=[{"sku": "A-100", "quantity": 2}, {"sku": "B-7", "quantity": 5}]),)),
    Script("zip with a zero", (ORDER,), "Order one of C-1 for Kim Lee, 5 Elm Street, Boston, zip code 02108.",
        (_call(ORDER, customer={"name": "Kim Lee", "address": {"street": "5 Elm Street", "city": "Boston", "zip": "02108"}},
            items=[{"sku": "C-1", "quantity": 1}]),)),
    Script("list of objects", (QUERY,),
        "From the table users, read the columns id and email of at most 20 rows whose column age has the operator > and the value 30.",
        (_call(QUERY, table="users", columns=["id", "email"], limit=20, filters=[{"column": "age", "operator": ">", "value": "30"}]),)),
    Script("two filters", (QUERY, SEARCH),
        "From the table orders, read only the column total, at most 5 rows: state = open, and name like A%.",
        (_call(QUERY, table="orders", columns=["total"], limit=5, filters=[
            {"column": "state", "operator": "=", "value": "open"}, {"column": "name", "operator": "like", "value": "A%"}]),)),
    Script("empty list", (QUERY,), "From the table logs, read the column line of at most 100 rows, without any filters.",
        (_call(QUERY, table="logs", columns=["line"], limit=100, filters=[]),)),
    Script("matrices", (MATRIX, ADD), "Multiply [[1, 2], [3, 4]] by [[0, 1], [1, 0]].",
        (_call(MATRIX, left=[[1, 2], [3, 4]], right=[[0, 1], [1, 0]]),)),
    Script("guests", _OFFICE, "Add the event Review on 2026-12-03 at 14:00 for 45 minutes, with ann@example.org and bo@example.org.",
        (_call(EVENT, title="Review", start=("2026-12-03T14:00", "2026-12-03T14:00:00"), minutes=45,
            guests=["ann@example.org", "bo@example.org"]),)),
    Script("no guests", _OFFICE, "Add the event Focus on 2026-12-04 at 08:30 for 90 minutes, with an empty list of guests.",
        (_call(EVENT, title="Focus", start=("2026-12-04T08:30", "2026-12-04T08:30:00"), minutes=90, guests=[]),)),
    Script("labels", _OFFICE, "File a public ticket Crash at start, priority high, with the labels bug and macos.",
        (_call(TICKET, title="Crash at start", priority="high", labels=["bug", "macos"], is_public=True),)),
    Script("one label", _OFFICE, "File a ticket that is not public: title Typo in help, low priority, label docs.",
        (_call(TICKET, title="Typo in help", priority="low", labels=["docs"], is_public=False),)),
    # Quotes, lines, other scripts of the world.
    Script("quotes", _FILES, 'In app.py, replace print("hi") by print("bye").',
        (_call(EDIT, path="app.py", old='print("hi")', new='print("bye")'),)),
    Script("both quotes", _FILES, """Run exactly this, with a timeout of 5 seconds: echo "it's done" """,
        (_call(RUN, command="""echo "it's done\"""", timeout_seconds=5),)),
    Script("backslashes", _FILES, r"Search the folder src for the regular expression \bdef\s+main\(",
        (_call(SEARCH, pattern=r"\bdef\s+main\(", folder="src"),)),
    Script("lines", _FILES, "Write a file notes.txt with two lines: the first is alpha, the second is beta.",
        (_call(WRITE, path="notes.txt", content=("alpha\nbeta", "alpha\nbeta\n")),)),
    Script("json in a text", _FILES, 'Write a file a.json whose content is exactly {"a": [1, 2]}',
        (_call(WRITE, path="a.json", content=('{"a": [1, 2]}', '{"a": [1, 2]}\n')),)),
    Script("umlauts", _OFFICE, "Translate into French: Schöne Grüße aus Zürich",
        (_call(TRANSLATE, text="Schöne Grüße aus Zürich", language="fr"),)),
    Script("Japanese", _OFFICE, "Translate 「東京タワー」 (without the brackets) into German.",
        (_call(TRANSLATE, text="東京タワー", language="de"),)),
    Script("emoji", _OFFICE, "Send an email to ann@example.org with the subject Launch 🚀 and the body We did it 🎉",
        (_call(EMAIL, to=["ann@example.org"], subject="Launch 🚀", body="We did it 🎉"),)),
    Script("spaces in a path", _FILES, "Read the file My Documents/Plan (final).md", (_call(READ, path="My Documents/Plan (final).md"),)),
    # Two calls at once.
    Script("two cities", _HOME, "What is the weather in Rome and in Oslo, in celsius? Ask for both at once.",
        (_call(WEATHER, city="Rome", unit="celsius"), _call(WEATHER, city="Oslo", unit="celsius"))),
    Script("two tools", _HOME, "At once: set an alarm at 07:00 on Sunday, and get the weather in Lima in celsius.",
        (_call(ALARM, time="07:00", days=["sun"]), _call(WEATHER, city="Lima", unit="celsius"))),
    Script("two files", _FILES, "Read both a.txt and b.txt at once.", (_call(READ, path="a.txt"), _call(READ, path="b.txt"))),
    Script("three stocks", (STOCK, CONVERT), "Get the prices of the symbols IBM, SAP and AMD at once.",
        tuple(_call(STOCK, symbol=symbol) for symbol in ("IBM", "SAP", "AMD"))),
    # No call.
    Script("greeting", _HOME, "Hello! Just say hello, nothing else.", ()),
    Script("knowledge", _OFFICE, "Without any tool: what is the capital of France?", (), says="Paris"),
    Script("no fitting tool", (STOCK,), "Write one sentence about the sea.", ()),
    # After results.
    Script("answer from a result", (WEATHER,), "What is the weather in Cairo, in celsius?", (), says="31",
        done=((_call(WEATHER, city="Cairo", unit="celsius"), '{"temperature": 31, "sky": "clear"}'),)),
    Script("value from a result", _FILES, "Read port.txt, then write the number in it to copy.txt.",
        (_call(WRITE, path="copy.txt", content=("48151", "48151\n")),),
        done=((_call(READ, path="port.txt"), "48151"),)),
    Script("second of two steps", (ADD, TRANSFER), "Add 12.5 and 30, then move that sum from the account a1 to the account b2.",
        (_call(TRANSFER, source="a1", target="b2", amount=42.5),),
        done=((_call(ADD, numbers=[12.5, 30]), "42.5"),)),
    Script("after two results", _FILES, "Read x.txt and y.txt. Then run the command that y.txt contains, with a timeout of 10 seconds.",
        (_call(RUN, command="make quick", timeout_seconds=10),),
        done=((_call(READ, path="x.txt"), "nothing here"), (_call(READ, path="y.txt"), "make quick"))),
)  # fmt: skip
