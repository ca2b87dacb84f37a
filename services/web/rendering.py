"""Templates and static files: read once at start, rendered with everything escaped. The templates hold all texts of the pages."""

import re
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from services.web import assets, usage_chart
from services.web.assets import Assets
from services.web.banner import Banner
from shared import errors
from shared.api.auth import KeyLimits
from shared.types import UserRole

_PACKAGE = Path(__file__).parent
_COMMAND = re.compile("`([^`]+)`")
#: What means itself in a shell and in every quoted text.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./:@+=,-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What stands around every page."""

    #: None for a visitor, and for somebody who has not finished signing in.
    username: str | None
    role: UserRole | None = None
    #: The organisation that the person acts for; None for their own.
    team_name: str | None = None
    #: The page that the navigation marks as the present one, by the first word of its path; or nothing.
    here: str
    #: For every form on the page.
    form_token: str
    #: light, dark or system.
    theme: str = "system"
    #: What the page says at its top.
    notice: "Notice | None" = None
    #: What it says above that of alerts; None where it is no page that speaks of them.
    banner: Banner | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that a page says at its top, such as what was just done."""

    text: str
    #: good, warn or bad.
    kind: str = "good"


class Renderer:
    """Pages and static files of one process; immutable after ``load``."""

    def __init__(self, environment: jinja2.Environment, assets: Assets) -> None:
        self._environment = environment
        self.assets = assets

    @classmethod
    def load(cls) -> "Renderer":
        """Raises BadSettings where a static file is missing: better than a page that is refused days later."""
        files = assets.load()
        templates = (path.read_text(encoding="utf-8") for path in sorted((_PACKAGE / "templates").rglob("*.html")))
        if missing := files.find_missing(templates):
            raise errors.BadSettings(
                f"static files of the pages are missing: {', '.join(missing)}", hint="install aimesh again, or `make setup` in a checkout"
            )
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_PACKAGE / "templates"),
            autoescape=True,
            # A name that does not exist is a bug and not an empty string.
            undefined=jinja2.StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {
            "number": _number,
            "credits": usage_chart.exact,
            "limits": _limits,
            "day": day,
            "clock": _clock,
            "sentence": _sentence,
            "in_code": _in_code,
        }
        environment.globals["static"] = files.address
        for name in environment.list_templates():
            # Compiled now: a mistake in a template stops the start and not a visitor.
            environment.get_template(name)
        return cls(environment, files)

    def render(self, template: str, frame: Frame, view: object) -> bytes:
        return self._environment.get_template(template).render(frame=frame, view=view).encode()


def _number(value: int) -> str:
    return f"{value:,}"


def _limits(limits: KeyLimits) -> str:
    """Those that are set; empty for none."""
    numbers = {
        "{} / h": limits.requests_per_hour,
        "{} / min": limits.requests_per_minute,
        "{} tokens / min": limits.tokens_per_minute,
        "{} at once": limits.concurrency,
    }
    words = [text.format(_number(value)) for text, value in numbers.items() if value is not None]
    if limits.budget_micro is not None:
        words.append(f"{usage_chart.exact(limits.budget_micro)} credits")
    return ", ".join(words)


def _sentence(text: str) -> Markup:
    """A message or hint of an error as people read it: a capital, a full stop, and `commands` set apart."""
    ended = text if text.endswith((".", "!", "?")) else text + "."
    escaped = str(escape(ended[:1].upper() + ended[1:]))
    return Markup(_COMMAND.sub(r"<code>\1</code>", escaped))  # noqa: S704 - escaped before the tags came in


def _in_code(model: str | None) -> str:
    """A model in lines that people paste into a shell: workers choose its name, and one that could do something there is left out."""
    return model if model is not None and _PLAIN.fullmatch(model) else "MODEL"


def day(value: date) -> str:
    """As the pages write it."""
    return f"{value.day} {value:%b %Y}"


def _clock(value: datetime) -> str:
    return f"{value:%H:%M} UTC"
