"""Runs chat templates in Jinja's immutable sandbox, and bounds the memory that a template may use.

A template comes with a model's file and is untrusted. Jinja isolates it from Python, but doesn't stop `"x" * 10**9` from filling the
memory, and no alarm interrupts such an operation. So every operation that builds a larger value is bounded *before* it runs:

- a text has at most MAX_TEXT_CHARACTERS, and all texts of one rendering together MAX_MADE_CHARACTERS;
- a list, tuple or mapping is measured as the tree that it prints as, so that repeating `[x, x]` forty times can't print 2**40 texts;
- only listed filters, methods and globals exist: those that templates of published models use, and some more.

`prompt` bounds the time. Only one rendering may run at a time, because the counter belongs to the sandbox.
"""

import json
from collections.abc import Callable, Iterable
from functools import wraps
from string import Formatter
from types import BuiltinMethodType, GeneratorType

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import FILTERS, do_indent, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace

#: Templates add a few words per message to texts of at most 1 MiB.
MAX_TEXT_CHARACTERS = 4 * 1024 * 1024
#: An honest template copies each text a few times (trimmed, joined, returned by a macro). In memory: 32 to 128 MiB.
MAX_MADE_CHARACTERS = 32 * 1024 * 1024
#: All values in a list or mapping, at any depth, plus the characters of their texts.
MAX_TREE_SIZE = 4 * 1024 * 1024
#: JSON schemas of tools have about ten levels; C code recurses over them.
MAX_TREE_DEPTH = 64
MAX_INTEGER_BITS = 1024
MAX_INDENT = 16

#: An item of a list needs as much memory as this many characters.
_ITEM_CHARACTERS = 16

#: Filters that return a part of their input, a number or a generator.
_PICKING_FILTERS = (
    *("abs", "count", "d", "default", "first", "float", "int", "items", "last", "length", "map", "max", "min"),
    *("reject", "rejectattr", "select", "selectattr"),
)
#: Filters whose result is about as large as their input; it is counted.
_MAKING_FILTERS = ("capitalize", "lower", "reverse", "title", "trim", "upper")
#: Filters that return a list, for example of a text's characters.
_LISTING_FILTERS = ("dictsort", "list", "sort", "unique")

_TEXT_METHODS = frozenset(
    (
        *("capitalize", "count", "endswith", "find", "format", "index", "join", "lower", "lstrip", "partition", "removeprefix"),
        *("removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith"),
        *("isalnum", "isalpha", "isdecimal", "isdigit", "islower", "isspace", "isupper", "strip", "title", "upper"),
    )
)
#: The allowed methods of a value; other types have what Jinja's sandbox allows.
_METHODS: tuple[tuple[type | tuple[type, ...], frozenset[str]], ...] = (
    (str, _TEXT_METHODS),
    (dict, frozenset({"get", "items", "keys", "values"})),
    ((list, tuple, range), frozenset({"count", "index"})),
    ((int, float, complex, bytes, GeneratorType), frozenset()),
)


class TemplateLimitExceeded(jinja2.TemplateError):
    """The template exceeds a limit."""


class _Generation(Extension):
    """`{% generation %}` marks the model's text, for training; here it only renders its content."""

    tags = {"generation"}  # noqa: RUF012 -- Jinja reads a plain set here

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _BoundedCode(CodeGenerator):
    """Compiles templates to Python code that calls the sandbox wherever it creates a value."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 -- Jinja names its visitors so
        self.write("environment.joined((")
        for child in node.nodes:
            self.visit(child, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self.write("environment.measured(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self.write("environment.measured(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        made = node.ctx == "load"
        self.write("environment.measured(" if made else "")
        super().visit_Tuple(node, frame)
        self.write(")" if made else "")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        sliced = isinstance(node.arg, nodes.Slice)
        self.write("environment.made(" if sliced else "")
        super().visit_Getitem(node, frame)
        self.write(")" if sliced else "")

    def visit_Name(self, node: nodes.Name, frame: Frame) -> None:  # noqa: N802
        if node.name in ("varargs", "kwargs"):
            self.fail(f"a chat template cannot use {node.name}", node.lineno)
        super().visit_Name(node, frame)

    def visit_ScopedEvalContextModifier(self, node: nodes.ScopedEvalContextModifier, frame: Frame) -> None:  # noqa: N802
        self.fail("a chat template cannot change how texts are escaped", node.lineno)


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment for one chat template. Call ``start`` before each rendering."""

    code_generator_class = _BoundedCode
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        # Without optimization and with a finalizer that needs the context, compiling evaluates no part of the template.
        extensions = ["jinja2.ext.loopcontrols", _Generation]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, optimized=False, finalize=_shown)
        self.filters = {name: FILTERS[name] for name in _PICKING_FILTERS}
        self.filters |= {name: self._counted(FILTERS[name]) for name in _MAKING_FILTERS}
        self.filters |= {name: self._listing(FILTERS[name]) for name in _LISTING_FILTERS}
        self.filters |= {
            "indent": self._indent,
            "join": self._join,
            "replace": self._replace,
            "safe": self.as_text,
            "string": self.as_text,
            "tojson": self._tojson,
        }
        self.globals = {"dict": self._dict, "namespace": self._namespace, "raise_exception": _raise_exception, "range": safe_range}
        self._made = 0

    def start(self) -> None:
        """Reset the counter before a rendering."""
        self._made = 0

    def made(self, value: object) -> object:
        """Count a new value, and return it."""
        if isinstance(value, str):
            self._spend(len(value))
        elif isinstance(value, list | tuple):
            self._spend(len(value) * _ITEM_CHARACTERS)
        return value

    def measured(self, value: object) -> object:
        """Refuse a list, tuple or mapping that is too large or too deep, or else return it."""
        size, level = 0, [value]
        for _ in range(MAX_TREE_DEPTH):
            below: list[object] = []
            for item in level:
                size += _room(below, item)
                if size + len(below) > MAX_TREE_SIZE:
                    raise TemplateLimitExceeded(f"a list with more than {MAX_TREE_SIZE} values and characters")
            if not below:
                return self.made(value)
            level = below
        raise TemplateLimitExceeded(f"a list nested deeper than {MAX_TREE_DEPTH} levels")

    def as_text(self, value: object) -> str:
        """Convert a value to text. The text of lists is bounded, because they were measured when they were created."""
        if isinstance(value, str):
            return value
        if isinstance(value, Namespace):
            raise TemplateLimitExceeded("a namespace printed as a text")
        text = str(value)
        self._check_text(len(text))
        self._spend(len(text))
        return text

    def joined(self, values: Iterable[object], between: str = "") -> str:
        """Join values to one text."""
        texts = [self.as_text(value) for value in values]
        self._check_text(sum(map(len, texts)) + len(between) * len(texts))
        text = between.join(texts)
        self._spend(len(text))
        return text

    # --- called by Jinja while a template runs -----------------------------------------------------------------------

    def concat(self, pieces: Iterable[str], /) -> str:
        """Join the output of a macro or a `{% set %}` block."""
        return self.joined(pieces)

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        return super().is_safe_attribute(obj, attr, value) and all(attr in names for kind, names in _METHODS if isinstance(obj, kind))

    def wrap_str_format(self, value: object) -> Callable[..., str] | None:
        if not isinstance(value, BuiltinMethodType) or value.__name__ != "format" or not isinstance(value.__self__, str):
            return None
        pattern = value.__self__

        def formatted(*positional: object, **named: object) -> str:
            return self.joined(_format_pieces(pattern, positional, named))

        return formatted

    def call(self, context: Context, function: Callable[..., object], /, *positional: object, **named: object) -> object:
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str) and isinstance(function, BuiltinMethodType):
            match function.__name__, positional:
                case "join", (values,) if isinstance(values, Iterable):
                    return self.joined(values, owner)
                case "replace", (old, new):
                    return self._replace(owner, old, new)
                case "replace", (old, new, int(count)):
                    return self._replace(owner, old, new, count)
        result: object = super().call(context, function, *positional, **named)
        # A mapping returns existing values.
        return result if isinstance(owner, dict) else self.made(result)

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        match operator:
            case "+" if isinstance(left, str) and isinstance(right, str):
                self._check_text(len(left) + len(right))
            case "*":
                self._check_product(left, right)
            case "**" if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MAX_INTEGER_BITS:
                raise TemplateLimitExceeded("a number with too many digits")
            case "%" if isinstance(left, str):
                raise SecurityError("a chat template must join texts with ~, not with %")
        result = self.binop_table[operator](left, right)
        return self.measured(result) if isinstance(result, list | tuple) else self.made(result)

    # --- filters and globals ------------------------------------------------------------------------------------------

    def _counted(self, function: Callable[..., object]) -> Callable[..., object]:
        @wraps(function)
        def counted(*positional: object, **named: object) -> object:
            return self.made(function(*positional, **named))

        return counted

    def _listing(self, function: Callable[..., object]) -> Callable[..., object]:
        @wraps(function)
        def listed(*positional: object, **named: object) -> object:
            # The input's position depends on the filter; a text becomes a list with an item per character.
            self._spend(sum(len(argument) for argument in positional if isinstance(argument, str)) * _ITEM_CHARACTERS)
            made = function(*positional, **named)
            return self.measured(made) if isinstance(made, list) else made

        return listed

    def _join(self, values: Iterable[object], between: str = "", attribute: str | int | None = None) -> str:
        if attribute is not None:
            values = map(make_attrgetter(self, attribute), values)
        return self.joined(values, self.as_text(between))

    def _replace(self, value: object, old: object, new: object, count: int | None = None) -> str:
        text, before, after = self.as_text(value), self.as_text(old), self.as_text(new)
        self._check_text(len(text) + text.count(before) * max(0, len(after) - len(before)))
        replaced = text.replace(before, after, -1 if count is None else count)
        self._spend(len(replaced))
        return replaced

    def _indent(self, value: object, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        text = self.as_text(value)
        prefix = width if isinstance(width, str) else min(width, MAX_TEXT_CHARACTERS) * " "
        self._check_text(len(text) + (len(text.splitlines()) + 1) * (len(prefix) + 1))
        indented = do_indent(text, prefix, first, blank)
        self._spend(len(indented))
        return indented

    def _tojson(
        self,
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Write JSON as in models' training data: not escaped for HTML, with a space after each comma.

        ``ensure_ascii`` is ignored: it would escape the MARK of `prompt`.
        """
        if indent is not None and indent > MAX_INDENT:
            raise TemplateLimitExceeded(f"JSON indented by more than {MAX_INDENT}")
        pieces, size = [], 0
        for piece in json.JSONEncoder(ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys).iterencode(value):
            size += len(piece)
            self._check_text(size)
            pieces.append(piece)
        self._spend(size)
        return "".join(pieces)

    def _dict(self, *positional: Iterable[tuple[object, object]], **named: object) -> object:
        return self.measured(dict(*positional, **named))

    def _namespace(self, *positional: dict[str, object], **named: object) -> Namespace:
        self.measured((*positional, named))
        return Namespace(*positional, **named)

    # --- limits -------------------------------------------------------------------------------------------------------

    def _check_product(self, left: object, right: object) -> None:
        match left, right:
            case (str(text), int(times)) | (int(times), str(text)):
                self._check_text(len(text) * times)
            case int(one), int(other):
                if one.bit_length() + other.bit_length() > MAX_INTEGER_BITS:
                    raise TemplateLimitExceeded("a number with too many digits")
            case (list() | tuple(), _) | (_, list() | tuple()):
                raise TemplateLimitExceeded("a list multiplied")

    def _check_text(self, characters: int) -> None:
        if characters > MAX_TEXT_CHARACTERS:
            raise TemplateLimitExceeded(f"a text of more than {MAX_TEXT_CHARACTERS} characters")

    def _spend(self, characters: int) -> None:
        self._made += characters
        if self._made > MAX_MADE_CHARACTERS:
            raise TemplateLimitExceeded(f"texts of more than {MAX_MADE_CHARACTERS} characters in total")


def _room(below: list[object], item: object) -> int:
    """Return the size of a value without its items, which are appended to ``below``."""
    match item:
        case str():
            return 1 + len(item)
        case list() | tuple():
            if len(below) + len(item) <= MAX_TREE_SIZE:
                below.extend(item)
                return 1
        case dict():
            if len(below) + 2 * len(item) <= MAX_TREE_SIZE:
                below.extend(item.keys())
                below.extend(item.values())
                return 1
        case Namespace():
            # A namespace can change after it was measured, and even contain itself.
            raise TemplateLimitExceeded("a namespace inside a list")
        case _:
            return 1
    return MAX_TREE_SIZE + 1


def _format_pieces(pattern: str, positional: tuple[object, ...], named: dict[str, object]) -> Iterable[object]:
    """Yield the parts of `pattern.format(...)`. Widths and attributes are refused, because no chat template needs them."""
    position = 0
    for literal, field, specification, conversion in Formatter().parse(pattern):
        yield literal
        if field is None:
            continue
        if specification or conversion:
            raise SecurityError("format() in a chat template does not support widths and conversions")
        if field == "" or field.isdecimal():
            yield positional[int(field or position)]
            position += 1
        else:
            yield named[field]


@jinja2.pass_context
def _shown(context: Context, value: object) -> str:
    sandbox = context.environment
    assert isinstance(sandbox, Sandbox)
    return sandbox.as_text(value)


def _raise_exception(message: object) -> None:
    """Refuse a chat: templates call it, for example if the roles don't alternate."""
    raise jinja2.TemplateError(str(message))
