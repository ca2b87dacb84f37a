"""What machines of your own cost beside an API, and from how many conversations on they cost less. Pure."""

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

#: Of a month.
HOURS = 730
_SECONDS = HOURS * 3600
_MILLION = 1_000_000
#: More machines are not looked at.
_MOST_MACHINES = 100_000


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
        for count in range(1, _MOST_MACHINES if pays_for_itself else 2):
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
