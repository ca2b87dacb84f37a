"""Load the templates and static files once at startup, and render pages with autoescaping."""

import gzip
import hashlib
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

import shared.features
from services.web.alert_banner import AlertBanner
from services.web.charts import usage_chart
from services.web.http import forms
from shared import amounts, currency, errors, limits, plan_names
from shared.api.auth import User
from shared.lists import account, billing
from shared.types import UserRole

_PACKAGE = Path(__file__).parent
_MEDIA_TYPES = {".css": "text/css", ".svg": "image/svg+xml", ".js": "text/javascript"}
#: name -> file installed by npm.
_FROM_NPM = {"npm/uplot.js": "npm/node_modules/uplot/dist/uPlot.iife.min.js", "npm/uplot.css": "npm/node_modules/uplot/dist/uPlot.min.css"}
#: How a template and a module reference static files.
_OF_TEMPLATE = re.compile(r"""\bstatic\(\s*['"]([^'"]+)['"]\s*\)""")
_OF_MODULE = re.compile(r"""^\s*(?:import|export)\b[^'"\n]*['"](\.[^'"\n]+)['"]""", re.MULTILINE)
#: Below this size, the header costs more than gzip saves.
_WORTH_PACKING = 512
_COMMAND = re.compile("`([^`]+)`")
#: Safe in a shell and in quoted text.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./:@+=,-]*")


# All static files share one version in their path. So a module imports its neighbors in the same version, and browsers can cache
# everything for a year.


@dataclass(frozen=True, slots=True)
class Asset:
    content: bytes
    media_type: str
    #: Compressed with gzip; None if that is no smaller.
    packed: bytes | None


@dataclass(frozen=True, slots=True)
class Assets:
    #: By path below `/static/<version>/`.
    files: Mapping[str, Asset]
    version: str

    def address(self, name: str) -> str:
        """Return the URL path of a file. Raises KeyError for an unknown file; ``find_missing`` finds those at startup."""
        if name not in self.files:
            raise KeyError(f"there is no static file {name!r}")
        return f"/static/{self.version}/{name}"

    def find_missing(self, templates: Iterable[str]) -> list[str]:
        """Return the files that templates or our modules reference and that do not exist."""
        named = {name for text in templates for name in _OF_TEMPLATE.findall(text)}
        for name, asset in self.files.items():
            if name.endswith(".js") and not name.startswith("npm/"):
                folder = posixpath.dirname(name)
                found = _OF_MODULE.findall(asset.content.decode())
                named |= {posixpath.normpath(posixpath.join(folder, neighbor)) for neighbor in found}
        return sorted(named - set(self.files))


def load_assets() -> Assets:
    """Load and compress the static files."""
    root = _PACKAGE / "static"
    found = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.suffix in _MEDIA_TYPES}
    found |= {name: path for name, place in _FROM_NPM.items() if (path := _PACKAGE / place).exists()}
    files = {
        name: _read_asset(path, *(shared.features.files("web/style.css") if name == "style.css" else ())) for name, path in found.items()
    }
    version = hashlib.sha256(b"".join(name.encode() + asset.content for name, asset in sorted(files.items()))).hexdigest()[:12]
    return Assets(files, version)


def _read_asset(path: Path, *more: Path) -> Asset:
    content = b"".join(each.read_bytes() for each in (path, *more))
    # No timestamp, so that all replicas serve the same bytes.
    packed = gzip.compress(content, 9, mtime=0) if len(content) > _WORTH_PACKING else content
    return Asset(content, _MEDIA_TYPES[path.suffix], packed if len(packed) < len(content) else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFrame:
    """The values that the layout of every page needs."""

    #: None until they complete all sign-in steps.
    user: User | None
    #: The organization that the user acts as; None for the personal account.
    team_name: str | None
    #: The section that the navigation marks, by the first word of its path.
    here: str
    #: The public URL, without a trailing slash.
    address: str
    form_token: str
    #: light, dark or system.
    theme: str
    problem: errors.AimeshError | None
    notice: "Notice | None"
    #: The alert banner; None on pages without it.
    banner: AlertBanner | None

    @property
    def is_admin(self) -> bool:
        return self.user is not None and self.user.role is UserRole.ADMIN


@dataclass(frozen=True, slots=True)
class Notice:
    """A message at the top of a page, such as the result of an action."""

    text: str
    #: good, warn or bad.
    kind: str = "good"


class Renderer:
    """Renders the pages of one process. A template is compiled when a page first needs it, because all of them take 0.4 s."""

    def __init__(self, templates: jinja2.Environment, assets: Assets) -> None:
        self.templates = templates
        self.assets = assets

    @classmethod
    def load(cls, *, sells: bool = False, has_pricing: bool = False, tabs: Iterable[object] = ()) -> "Renderer":
        """``sells`` and ``has_pricing``: link to billing and to /pricing. ``tabs``: of features.
        Raises BadSettings if a static file is missing, so that a broken
        installation fails at startup."""
        files = load_assets()
        roots = (_PACKAGE / "templates", *shared.features.files("web/templates"))
        templates = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for root in roots for path in root.rglob("*.html")}
        if missing := files.find_missing(templates.values()):
            raise errors.BadSettings(
                f"static files are missing: {', '.join(missing)}", hint="reinstall aimesh, or run `make setup` in a checkout"
            )
        environment = jinja2.Environment(
            loader=jinja2.DictLoader(templates),
            autoescape=True,
            # An unknown name is a bug, not an empty string.
            undefined=jinja2.StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {
            "number": usage_chart.number,
            "credits": amounts.grouped,
            "account_lines": account.lines,
            "day": day,
            "clock": _clock,
            "sentence": _sentence,
            "in_code": in_code,
            "money": currency.written,
            "fee": billing.fee,
            "plan_facts": billing.plan_facts,
            "plan_name": plan_names.name_of,
        }
        environment.globals |= {"static": files.address, "limit_kinds": limits.LIMITS, "bounds": forms.bounds}
        environment.globals |= {"sells": sells, "has_pricing": has_pricing, "feature_tabs": tabs}
        return cls(environment, files)

    def render(self, template: str, frame: PageFrame, view: object) -> bytes:
        return self.templates.get_template(template).render(frame=frame, view=view).encode()


def _sentence(text: str) -> Markup:
    """Format an error message or hint: capitalize it, end it with a period and mark up `commands`."""
    ended = text if text.endswith((".", "!", "?")) else text + "."
    escaped = str(escape(ended[:1].upper() + ended[1:]))
    return Markup(_COMMAND.sub(r"<code>\1</code>", escaped))  # noqa: S704 - escaped above


def in_code(model: str | None) -> str:
    """Return a model name for samples that users paste into a shell, or MODEL if the name is unsafe there. Workers choose the names."""
    return model if model is not None and _PLAIN.fullmatch(model) else "MODEL"


def day(value: date) -> str:
    """Format a date as the pages show it."""
    return f"{value.day} {value:%b %Y}"


def _clock(value: datetime) -> str:
    return f"{value:%H:%M} UTC"
