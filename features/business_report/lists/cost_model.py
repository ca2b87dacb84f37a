"""What machines of your own cost beside an API, and from how many conversations on they cost less. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal, InvalidOperation

#: Of a month.
HOURS = 730
_SECONDS = HOURS * 3600
_MILLION = 1_000_000
#: Of any number of a plan.
_MAX = Decimal(10**9)
#: More machines are not looked at.
_MAX_MACHINES = 100_000


@dataclass(frozen=True, slots=True)
class PlanField:
    """A number of ``CostPlan``, as `aicli cost plan` and the page ask for it."""

    name: str
    option: str
    label: str
    text: str
    is_above_zero: bool = False
    most: Decimal = _MAX


FIELDS = (
    PlanField("hourly", "machine-hour", "Machine, per hour", "Price of one machine."),
    PlanField("tokens_per_second", "tokens-per-second", "Tokens per second", "Output tokens of one machine, over all its streams.", True),
    PlanField("utilization", "utilization", "Utilization", "Share of the month in which a machine can be busy.", True, Decimal(1)),
    PlanField("watts_idle", "watts-idle", "Watts, idle", "Power of an idle machine, if its price doesn't include it."),
    PlanField("watts_busy", "watts-busy", "Watts, busy", "Power of a busy machine."),
    PlanField("kwh", "kwh", "Price of a kWh", "Price of a kWh."),
    PlanField("fixed", "fixed", "Fixed, own machines", "All other costs a month with machines of your own."),
    PlanField("api_fixed", "api-fixed", "Fixed, API", "All other costs a month with an API."),
    PlanField("api_input", "api-input", "API, 1M input tokens", "The API's price of a million input tokens."),
    PlanField("api_output", "api-output", "API, 1M output tokens", "The API's price of a million output tokens."),
    PlanField("input_tokens", "input-tokens", "Input per conversation", "Input tokens of a conversation."),
    PlanField("output_tokens", "output-tokens", "Output per conversation", "Output tokens of a conversation.", True),
)


class WrongNumber(ValueError):
    """A number of a plan that can't be; the message is for people."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.field = next(field for field in FIELDS if field.name == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostPlan:
    """A month. The defaults are the documents' two n1-standard-4 with a T4 against their APIs."""

    #: Of one machine.
    hourly: Decimal = Decimal("0.54")
    #: Output tokens of one machine, over all its streams, and the share of the month in which it can be busy.
    tokens_per_second: Decimal = Decimal(60)
    utilization: Decimal = Decimal("0.5")
    #: Power, if the hourly price doesn't include it.
    watts_idle: Decimal = Decimal(0)
    watts_busy: Decimal = Decimal(0)
    kwh: Decimal = Decimal(0)
    #: What everything else costs a month, with machines of your own and with an API.
    fixed: Decimal = Decimal(833)
    api_fixed: Decimal = Decimal(400)
    #: Of a million tokens.
    api_input: Decimal = Decimal("2.5")
    api_output: Decimal = Decimal(10)
    #: Of a conversation.
    input_tokens: Decimal = Decimal(8_000)
    output_tokens: Decimal = Decimal(3_000)

    def __post_init__(self) -> None:
        if not self.capacity:
            raise WrongNumber("output_tokens", "one machine answers less than one conversation a month")

    @property
    def capacity(self) -> int:
        """Return the conversations that one machine answers in a month."""
        return int(self.tokens_per_second * _SECONDS * self.utilization / self.output_tokens)

    @property
    def api_each(self) -> Decimal:
        """Return what a conversation costs at the API."""
        return (self.input_tokens * self.api_input + self.output_tokens * self.api_output) / _MILLION

    @property
    def power_each(self) -> Decimal:
        """Return what a conversation adds to the power of an idle machine."""
        busy_hours = self.output_tokens / self.tokens_per_second / 3600
        return busy_hours * (self.watts_busy - self.watts_idle) / 1000 * self.kwh

    @property
    def machine_month(self) -> Decimal:
        """Return what one idle machine costs."""
        return HOURS * (self.hourly + self.watts_idle / 1000 * self.kwh)

    def machines(self, conversations: int) -> int:
        return max(1, -(-conversations // self.capacity))

    def own(self, conversations: int) -> Decimal:
        """Return what so many conversations cost on machines of your own."""
        return self.fixed + self.machines(conversations) * self.machine_month + conversations * self.power_each

    def api(self, conversations: int) -> Decimal:
        return self.api_fixed + conversations * self.api_each

    def break_even(self) -> tuple[int, int | None] | None:
        """Return from how many conversations on machines of your own cost no more than the API, and from how many on that stays so: each
        further machine is a step, behind which the API may cost less again for a while. None for never."""
        saved = self.api_each - self.power_each
        if saved <= 0:
            return (1, None) if self.own(1) <= self.api(1) else None
        first, stays = None, 1
        pays_for_itself = self.machine_month <= saved * self.capacity
        for count in range(1, _MAX_MACHINES if pays_for_itself else 2):
            begins, ends = (count - 1) * self.capacity + 1, count * self.capacity
            equal = int(((self.fixed + count * self.machine_month - self.api_fixed) / saved).to_integral_value(ROUND_CEILING))
            if equal <= ends:
                first = first or max(begins, equal)
            if equal <= begins and count > 1:
                break  # of this step and all further ones
            stays = min(max(begins, equal), ends + 1)
        if first is None:
            return None
        return first, stays if pays_for_itself else None

    def verdict(self) -> tuple[str, ...]:
        """Return sentences for people."""
        found = self.break_even()
        one = f"One machine answers {self.capacity:,} conversations a month, and costs {self.machine_month:,.2f} while idle."
        if found is None:
            return one, "Machines of your own never cost less than the API."
        first, stays = found
        even = f"Break-even: {first:,} conversations a month."
        if stays is None:
            return one, f"{even} From the next machine on, the API costs less again."
        return one, even if stays == first else f"{even} From {stays:,} on, the API never costs less again."

    def of_mesh(self, prompt_tokens: int, completion_tokens: int, conversations: int, days: int) -> "tuple[CostPlan, int] | None":
        """Return the plan with a mesh's tokens of a conversation, and how many it has in 30 days; None without any."""
        if not (conversations and completion_tokens):
            return None
        tokens = {"input_tokens": prompt_tokens, "output_tokens": completion_tokens}
        each = {name: round(Decimal(number) / conversations, 1) for name, number in tokens.items()}
        return replace(self, **each), max(1, round(conversations * 30 / days))


def read(given: Mapping[str, str]) -> CostPlan:
    """Read the numbers by name; missing ones have their defaults. Raises WrongNumber."""
    return CostPlan(**{field.name: _number(field, given[field.name]) for field in FIELDS if field.name in given})


def _number(field: PlanField, text: str) -> Decimal:
    try:
        found = Decimal(text)
    except InvalidOperation:
        found = Decimal(-1)
    if not (found.is_finite() and 0 <= found <= _MAX):
        raise WrongNumber(field.name, f"{text[:30]!r} is not a number from 0 to {_MAX:,}")
    if field.is_above_zero and not found:
        raise WrongNumber(field.name, "must be above 0")
    if found > field.most:
        raise WrongNumber(field.name, f"must be at most {field.most}")
    return found
