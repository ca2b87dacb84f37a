"""Finds personal data and secrets in a part of a text. Pure.

One RE2 pass finds candidates; each kind then confirms its own. Numbers are taken as one run of digits and separators, because the same
digits may be a card, a national number, a phone number or an address.
"""

import base64
import binascii
import ipaddress
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import re2
from stdnum import iban

from services.gateway.guard import national_ids, payment_cards, phone_numbers, searched_text
from services.gateway.guard.phone_numbers import PhoneBudget, PhoneLikeness
from services.gateway.guard.searched_text import Match
from shared.config_documents import GuardKind
from shared.identity import credentials

#: Characters before a number in which a word such as "passport" is looked for.
CONTEXT_CHARACTERS = 40
#: The longest key or token.
MAX_SECRET_CHARACTERS = 8192
_MIN_PHONE_DIGITS, _MAX_PHONE_DIGITS = 7, 15
#: With up to three separators between two digits.
MAX_NUMBER_CHARACTERS = 4 * payment_cards.MAX

#: A number may continue on the next line, but not on a third one: most of such texts are lists.
_MAX_LINE_BREAKS = 1

_EMAIL = r"[A-Za-z0-9_][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}"
_IBAN = r"[A-Z]{2}[0-9]{2}(?:[ \n-]?[A-Z0-9]){11,30}|[a-z]{2}[0-9]{2}[a-z0-9]{11,30}"
_IP6 = r"[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:[0-9]{0,3}(?:\.[0-9]{1,3}){3})?"
_RUN = r"\+?\(?[0-9](?:(?:[ ().\/-]{0,3}|[ -]?\n)[0-9])*"
_LETTERED_ID = (
    r"[0-9]{2}\.?[0-9]{3}\.?[0-9]{3}[ -]?[A-Za-z]|[XYZxyz][ -]?[0-9]{7}[ -]?[A-Za-z]|[0-9]{6}[-+A-FU-Y][0-9]{3}[0-9A-Z]"
    r"|[A-Za-z]{6}[0-9]{2}[A-Za-z][0-9]{2}[A-Za-z][0-9]{3}[A-Za-z]"
    r"|[12] ?[0-9]{2} ?[0-9]{2} ?2[AB] ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}"
)
_PEM = r"-----BEGIN (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?-----"
_JWT = r"eyJ[A-Za-z0-9_-]{10,400}\.[A-Za-z0-9_-]*"
_SECRET = (
    rf"{_PEM}|{_JWT}|aip_[a-z]{{2,8}}_[0-9A-Za-z_-]{{40,250}}|sk-[A-Za-z0-9_-]{{20,250}}|[sr]k_live_[A-Za-z0-9]{{16,250}}"
    r"|A[KS]IA[A-Z2-7]{16}|gh[oprsu]_[A-Za-z0-9]{36,250}|github_pat_[A-Za-z0-9_]{50,250}|xox[abeoprs]-[A-Za-z0-9-]{10,250}"
    r"|AIza[A-Za-z0-9_-]{35}|glpat-[A-Za-z0-9_-]{20,250}"
)
#: Every match of a kind contains one of these.
TRIGGER = re.compile(r"[0-9@]|--|::|eyJ|AKIA|ASIA|AIza|xox|gh[oprsu]_|github_pat_|glpat-|[sr]k[-_]|aip_")

#: Every match also contains one of these, which few words of prose contain.
LIKELY = re.compile(
    TRIGGER.pattern.replace("[0-9@]", "@")
    # An account number may have four letters among its digits.
    + r"|(?:[0-9][^0-9]{0,6}){6}[0-9]|[0-9]\.[0-9]{1,3}\.[0-9]|[0-9A-Fa-f]:[0-9A-Fa-f]{1,4}:"
)

_DIGITS = re.compile(r"[0-9]+")
_JOINTS = frozenset("-./")
_CARD_JOINTS = frozenset("- ")
_NO_TOP_LEVEL_DOMAIN = frozenset(
    {"bmp", "css", "gif", "ico", "jpeg", "jpg", "js", "json", "png", "svg", "toml", "webp", "woff", "xml", "yaml"}
)
#: The number of a version, a section or a chapter.
_VERSION = re.compile(
    r"(?:\b(?:v|ver|rev|versi[oó]n[ei]?|version(?:en|s)?|release|build|firmware|driver|section|sec|abschnitt|kapitel|chapter|chapitre"
    r"|secci[oó]n|sezione|cap[ií]tulo|capitolo|art(?:icle|ikel|icolo|[ií]culo)?|§)[.:=]?[\s\"'(]*|[A-Za-z]/|[=~^<>]=?\s?)$",
    re.IGNORECASE,
)
_PEM_END = re.compile(r"-----END (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?-----")
#: A key without its end: lines of base64, and headers such as "Proc-Type: 4,ENCRYPTED".
_PEM_BODY = re.compile(r"(?:[A-Za-z0-9+/=\\\r\n\t:,.-]|(?<=[\s:,]) )*")
_TOKEN_BODY = re.compile(r"[A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class _Area:
    """The part of a text that is searched, and what the text was before."""

    text: str
    start: int
    end: int
    #: What begins here or later is not looked for.
    until: int
    #: Characters of the whole text before ``text``.
    offset: int
    phones: PhoneBudget

    def before(self, position: int) -> str:
        return self.text[max(0, position - CONTEXT_CHARACTERS) : position]

    def stands_alone(self, start: int, end: int) -> bool:
        return not (start and _is_word(self.text[start - 1])) and not (end < self.end and _is_word(self.text[end]))


class OpenSecret(Exception):
    """The end of a key is not in the text yet."""


class Detector:
    """Finds some kinds. May be used for any number of texts."""

    def __init__(
        self, kinds: frozenset[GuardKind], *, countries: tuple[str, ...] = (), allow: Iterable[str] = (), internal_addresses: bool = False
    ) -> None:
        """``allow``: texts that are never found. ``internal_addresses``: also find loopback, private and documentation addresses."""
        self.kinds = kinds
        self._countries = countries
        self._allow = frozenset(map(searched_text.normalize, allow))
        self._internal_addresses = internal_addresses
        ids = tuple(national_ids.of_countries(countries)) if GuardKind.NATIONAL_ID in kinds else ()
        self._lettered_ids = tuple(one for one in ids if one.has_letters)
        self._digit_ids = tuple(one for one in ids if not one.has_letters)
        self._digit_id = re.compile("|".join(f"(?:{one.form.pattern})" for one in self._digit_ids))
        self._phone_forms = phone_numbers.PhoneForms(countries)
        forms: list[tuple[str, str, bool]] = [
            ("secret", _SECRET, GuardKind.SECRET in kinds),
            ("email", _EMAIL, GuardKind.EMAIL in kinds),
            ("iban", _IBAN, GuardKind.IBAN in kinds),
            ("ip6", _IP6, GuardKind.IP in kinds),
            ("lettered", _LETTERED_ID, bool(self._lettered_ids)),
            ("run", _RUN, bool({GuardKind.CARD, GuardKind.PHONE, GuardKind.IP} & kinds or self._digit_ids)),
        ]
        options = re2.Options()
        options.log_errors = False
        self._names = [name for name, _, is_used in forms if is_used]
        self._pattern = re2.compile("|".join(f"({form})" for _, form, is_used in forms if is_used), options) if self._names else None
        self._confirm: dict[str, Callable[[_Area, int, int], Iterator[Match]]] = {
            "secret": self._secrets,
            "email": self._emails,
            "iban": self._ibans,
            "ip6": self._ip6,
            "lettered": self._lettered,
            "run": self._run,
        }

    def find(
        self, text: str, start: int, end: int, until: int, *, offset: int = 0, phones: PhoneBudget | None = None, is_whole: bool = True
    ) -> list[Match]:
        """Return what begins in ``text[start:until]``, in order, without overlaps, and some of what begins later. Only a long secret may
        end after ``end``. Raises OpenSecret if a secret may continue after ``text``, unless ``is_whole``."""
        if self._pattern is None:
            return []
        # A number of another kind may overlap it.
        area = _Area(text, start, end, until + MAX_NUMBER_CHARACTERS, offset, PhoneBudget() if phones is None else phones)
        region = text[start:end]
        found: list[Match] = []
        at = 0
        while at < len(region) and (candidate := self._pattern.search(region, at)) is not None:
            name = self._names[candidate.lastindex - 1]
            first, last = start + candidate.start(), start + candidate.end()
            matches = list(self._confirm[name](area, first, last))
            if name == "secret" and matches:
                matches = [self._to_its_end(text, matches[0], is_whole=is_whole)]
            found.extend(match for match in matches if text[match.start : match.end] not in self._allow)
            if name == "iban" and not matches:
                # Its digits may be another number.
                last = first + 2
            elif matches:
                last = max(last, matches[-1].end) if name != "iban" else matches[-1].end
            at = max(at + 1, last - start)
        return found

    # --- secrets, addresses, accounts ---------------------------------------------------------------------------------------

    def _secrets(self, area: _Area, start: int, end: int) -> Iterator[Match]:
        text = area.text[start:end]
        if (text.startswith("-----") or not (start and _is_word(area.text[start - 1]))) and _is_secret(text):
            yield Match(start, end, GuardKind.SECRET)

    def _to_its_end(self, text: str, match: Match, *, is_whole: bool) -> Match:
        most = match.start + MAX_SECRET_CHARACTERS
        if text.startswith("-----", match.start):
            closing = _PEM_END.search(text, match.end, most)
            stop = _PEM_BODY.match(text, match.end, most)
            assert stop is not None  # it may be empty
            end = stop.end()
            if closing is not None and closing.start() <= end:
                return Match(match.start, closing.end(), match.kind)
            # "-----END RSA" ends the body, but not yet the key.
            is_open = end == len(text) or (len(text) - end < len("-----END ") + 64 and "-----END" in text[end - 8 : end])
        elif text.startswith("eyJ", match.start):
            body = _TOKEN_BODY.match(text, match.end, most)
            assert body is not None  # it may be empty
            end, is_open = body.end(), body.end() == len(text)
        else:
            return match
        if is_open and not is_whole and len(text) < most:
            raise OpenSecret
        return Match(match.start, end, match.kind)

    def _emails(self, area: _Area, start: int, end: int) -> Iterator[Match]:
        text = area.text[start:end]
        before = area.text[start - 1] if start else ""
        after = area.text[end] if end < area.end else ""
        is_whole = not (before.isascii() and before and (before.isalnum() or before in "._%+-@")) and not _is_word(after)
        # git@github.com:owner/name.git, and icon@2x.png
        is_path = (after == ":" and not area.text[end + 1 : area.end][:1].isspace()) or text.rpartition(".")[
            2
        ].lower() in _NO_TOP_LEVEL_DOMAIN
        if is_whole and not is_path and len(text) <= 254 and ".." not in text and ".@" not in text:
            yield Match(start, end, GuardKind.EMAIL)

    def _ibans(self, area: _Area, start: int, end: int) -> Iterator[Match]:
        if start and _is_word(area.text[start - 1]):
            return
        # Words in capitals may follow it.
        stops = {end} | {position for position in range(start + 15, end) if area.text[position].isspace()}
        for stop in sorted(stops, reverse=True):
            written = area.text[start:stop]
            number = "".join(letter for letter in written if letter.isalnum())
            if (
                written.count("\n") <= _MAX_LINE_BREAKS
                and not (stop < area.end and _is_word(area.text[stop]))
                and iban.is_valid(number, check_country=False)
            ):
                yield Match(start, stop, GuardKind.IBAN)
                return

    def _ip6(self, area: _Area, start: int, end: int) -> Iterator[Match]:
        if area.stands_alone(start, end) and not (end < area.end and area.text[end] == ":"):
            yield from self._address(area, start, end)

    def _address(self, area: _Area, start: int, end: int) -> Iterator[Match]:
        try:
            address = ipaddress.ip_address(area.text[start:end])
        except ValueError:
            return
        # "1::" and "::" are slices of programs; a real address has more.
        is_short = isinstance(address, ipaddress.IPv6Address) and end - start < 6
        if self._internal_addresses or (address.is_global and not address.is_multicast and not is_short):
            yield Match(start, end, GuardKind.IP)

    def _lettered(self, area: _Area, start: int, end: int) -> Iterator[Match]:
        text = area.text[start:end]
        if area.stands_alone(start, end) and any(one.is_valid(text) for one in self._lettered_ids):
            yield Match(start, end, GuardKind.NATIONAL_ID)

    # --- runs of digits -----------------------------------------------------------------------------------------------------

    def _run(self, area: _Area, start: int, end: int) -> Iterator[Match]:
        groups = _groups(area, start, end)
        claimed: list[Match] = []
        for kind, find in (
            (GuardKind.CARD, _cards),
            (GuardKind.NATIONAL_ID, self._ids),
            (GuardKind.IP, self._ip4),
            (GuardKind.PHONE, self._phones),
        ):
            if kind in self.kinds:
                earlier = tuple(claimed)
                claimed.extend(match for match in find(area, groups) if not any(_overlap(match, other) for other in earlier))
        yield from sorted(claimed, key=lambda match: match.start)

    def _ids(self, area: _Area, groups: "_Groups") -> Iterator[Match]:
        if not self._digit_ids:
            return
        begin, ends_at = groups.spans[0][0], -1
        run = area.text[begin : groups.spans[-1][1]].replace("\n", " ")
        for first, behind in groups.windows(most_groups=7, digits=range(9, 16)):
            start, end = groups.span(first, behind)
            if start < ends_at or self._digit_id.fullmatch(run, start - begin, end - begin) is None:
                continue
            for one in self._digit_ids:
                text = run[start - begin : end - begin]
                if one.is_valid(text) and (not one.needs_context or national_ids.CONTEXT.search(area.before(start))):
                    ends_at = end
                    yield Match(start, end, GuardKind.NATIONAL_ID)
                    break

    def _ip4(self, area: _Area, groups: "_Groups") -> Iterator[Match]:
        for first in range(len(groups.spans) - 3):
            if groups.joints[first + 1 : first + 4] != (".", ".", "."):
                continue
            start, end = groups.span(first, first + 4)
            is_longer = area.text[start - 1 : start] == "." or (area.text[end : end + 1] == "." and area.text[end + 1 : end + 2].isdigit())
            is_alone = groups.may_begin(first) and groups.may_end(first + 3) and not is_longer
            if is_alone and _VERSION.search(area.before(start)) is None:
                yield from self._address(area, start, end)

    def _phones(self, area: _Area, groups: "_Groups") -> Iterator[Match]:
        ends_at = -1
        for first, behind in groups.windows(most_groups=7, digits=range(_MIN_PHONE_DIGITS, _MAX_PHONE_DIGITS + 1)):
            start, end = groups.span(first, behind)
            # A run may begin with + or a parenthesis.
            start = start if first else groups.start
            if start < ends_at or groups.are_continued(first, behind):
                continue
            text, digits = area.text[start:end].replace("\n", " "), groups.digits_of(first, behind)
            if groups.breaks(first, behind) and not text.startswith("+"):
                # Numbers of a list.
                continue
            if not self._phone_forms.is_likely(text, digits):
                continue
            likeness = area.phones.judge(area.offset + start, text, partial(self._phone_forms.judge, text, digits))
            if likeness is PhoneLikeness.NUMBER or (
                likeness is PhoneLikeness.DIGITS and phone_numbers.CONTEXT.search(area.before(start)) is not None
            ):
                ends_at = end
                yield Match(start, end, GuardKind.PHONE)


@dataclass(frozen=True, slots=True)
class _Groups:
    """The groups of digits in a run. ``behind`` is the group after a sequence's last one."""

    area: _Area
    #: Where the run starts, which may begin with + or a parenthesis.
    start: int
    spans: tuple[tuple[int, int], ...]
    #: The digits of all groups.
    digits: str
    #: Digits before each group, and in all.
    sums: tuple[int, ...]
    #: What is between each group and a digit before it, and between the last group and a digit after it.
    joints: tuple[str, ...]
    #: Line breaks before each group.
    lines: tuple[int, ...]

    def span(self, first: int, behind: int) -> tuple[int, int]:
        return self.spans[first][0], self.spans[behind - 1][1]

    def digits_of(self, first: int, behind: int) -> str:
        return self.digits[self.sums[first] : self.sums[behind]]

    def are_continued(self, first: int, behind: int) -> bool:
        """Return whether another digit comes before or after the sequence, with only a hyphen, point or slash between."""
        return self.joints[first] in _JOINTS or self.joints[behind] in _JOINTS

    def breaks(self, first: int, behind: int) -> int:
        """Return the number of line breaks in the sequence."""
        return self.lines[behind - 1] - self.lines[first]

    def may_begin(self, group: int) -> bool:
        start = self.spans[group][0]
        return group > 0 or not (self.start and _is_word(self.area.text[self.start - 1]) and self.start == start)

    def may_end(self, group: int) -> bool:
        end = self.spans[group][1]
        return group < len(self.spans) - 1 or not (end < self.area.end and _is_word(self.area.text[end]))

    def windows(self, *, most_groups: int, digits: range) -> Iterator[tuple[int, int]]:
        """Yield every sequence of groups with so many digits, the longest first for each start. Millions of a long text are looked at."""
        sums, least, most = self.sums, digits.start, digits.stop - 1
        if sums[-1] < least:
            return
        groups = len(self.spans) if self.may_end(len(self.spans) - 1) else len(self.spans) - 1
        for first in range(0 if self.may_begin(0) else 1, groups):
            if self.spans[first][0] >= self.area.until:
                break
            before, behind = sums[first], min(groups, first + most_groups)
            # Lists of short numbers end here.
            while (size := sums[behind] - before) >= least:
                # Single digits in a row are a list.
                if behind - first < size <= most and self.breaks(first, behind) <= _MAX_LINE_BREAKS:
                    yield first, behind
                behind -= 1


def _groups(area: _Area, start: int, end: int) -> _Groups:
    text = area.text
    spans = tuple(match.span() for match in _DIGITS.finditer(text, start, end))
    before = text[start - 1] if start > 1 and text[start - 2].isdigit() else ""
    behind = text[end : end + 1] if text[end + 1 : min(area.end, end + 2)].isdigit() else ""
    joints = (before, *(text[left:right] for (_, left), (right, _) in itertools.pairwise(spans)), behind)
    sums = (0, *itertools.accumulate(right - left for left, right in spans))
    lines = tuple(itertools.accumulate(joint.endswith("\n") for joint in joints[:-1]))
    return _Groups(area, start, spans, "".join(_DIGITS.findall(text, start, end)), sums, joints, lines)


def _cards(_area: _Area, groups: _Groups) -> Iterator[Match]:
    ends_at = -1
    for first, behind in groups.windows(most_groups=6, digits=range(payment_cards.MIN, payment_cards.MAX + 1)):
        if groups.digits[groups.sums[first]] not in payment_cards.FIRST_DIGITS:
            continue
        written = groups.joints[first + 1 : behind]
        joints = {joint[0].replace("\n", " ") if joint.endswith("\n") else joint for joint in written}
        # Two long numbers on two lines are a list.
        is_list = groups.breaks(first, behind) == len(written)
        if (
            len(joints) > 1
            or not joints <= _CARD_JOINTS
            or (written and is_list)
            or not payment_cards.is_card(groups.digits_of(first, behind))
        ):
            continue
        start, end = groups.span(first, behind)
        if start >= ends_at and all(right - left >= 3 for left, right in groups.spans[first : behind - 1]):
            ends_at = end
            yield Match(start, end, GuardKind.CARD)


def _is_secret(text: str) -> bool:
    if text.startswith("aip_"):
        return not text.startswith(tuple(credentials.PREFIXES.values())) or credentials.looks_like_api_key(text)
    if text.startswith("sk-"):
        # Words with hyphens are names, such as sk-learn-contrib-something.
        return any(len(part) >= 16 and any(map(str.isdigit, part)) and any(map(str.isalpha, part)) for part in re.split("[-_]", text))
    if text.startswith("eyJ"):
        head = text.partition(".")[0]
        try:
            header = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
        except (ValueError, binascii.Error):
            return False
        return isinstance(header, dict) and "alg" in header
    if text.startswith(("AKIA", "ASIA", "AIza")):
        return any(map(str.isdigit, text)) or (text.startswith("A") and len(set(text)) > 6)
    return True


def load() -> None:
    """Load the rules of all numbers, which the libraries would read from disk while a request waits. Blocks for about 0.1 s."""
    national_ids.load()
    phone_numbers.load()
    iban.is_valid("DE89370400440532013000")


def knows_country(country: str) -> bool:
    return country in national_ids.NATIONAL_IDS or phone_numbers.knows_country(country)


def _overlap(one: Match, other: Match) -> bool:
    return one.start < other.end and other.start < one.end


def _is_word(letter: str) -> bool:
    return letter.isalnum() or letter == "_"
