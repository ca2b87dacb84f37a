"""The cost tables of the source documents, computed again. Pure."""

from decimal import Decimal

import msgspec

from features.business_report.lists.cost_model import HOURS

_D = Decimal
#: Monthly, as the documents have them.
CLOUD_RUN = {"frontend": _D(50), "backend": _D(100), "Cloud SQL": _D(200), "Memorystore": _D(50)}
GKE = {"frontend and backend": _D(150), "Cloud SQL": _D(200), "Memorystore": _D(50), "control plane": _D(73), "3 n1-standard-4": _D(360)}
T4_NODES, N1_NODES = _D(780), GKE["3 n1-standard-4"]
APIS, CONVERSATIONS = _D(500), 10_000
T4_HOURLY, N1_HOURLY = _D("0.54"), _D("0.19")
#: Frontend and backend, for a million requests.
PER_MILLION = _D(24) + _D(48)
#: Requests a day, and what the documents say that they cost a month.
TRAFFIC = {50_000: _D(50), 500_000: _D(150), 5_000_000: _D(500), 50_000_000: _D(3_600)}


class Checked(msgspec.Struct, frozen=True):
    """A line of the documents."""

    what: str
    #: None if they name no figure.
    said: Decimal | None
    computed: Decimal
    remark: str

    @property
    def difference(self) -> Decimal | None:
        return None if self.said is None else self.computed - self.said


def shown(amount: Decimal) -> str:
    """Format for people: 1,213 or 788.40."""
    return f"{round(amount, 2):,f}".removesuffix(".00")


def checked() -> tuple[Checked, ...]:
    cloud, gke = sum(CLOUD_RUN.values(), _D(0)), sum(GKE.values(), _D(0)) + T4_NODES
    even, t4, n1 = gke - cloud, 2 * T4_HOURLY * HOURS, 3 * N1_HOURLY * HOURS
    exact = gke - T4_NODES + t4 - N1_NODES + n1
    return (
        Checked("Cloud Run with APIs, a month", _D(900), cloud + APIS, "agrees"),
        Checked("GKE with its own models, a month", _D(1_613), gke, "agrees"),
        Checked("API costs at the break-even", _D(1_200), even, "rounded"),
        Checked("conversations at the break-even", _D(24_000), even * CONVERSATIONS / APIS, "rounded"),
        Checked("2 n1-standard-4 with a T4", T4_NODES, t4, f"780 fits {T4_NODES / (2 * T4_HOURLY):.0f} hours"),
        Checked("3 n1-standard-4", N1_NODES, n1, f"GKE then costs {exact:.2f}, and the break-even is {exact - cloud:.2f}"),
        Checked("to migrate from API costs of", _D(500), even, f"at 500, GKE costs {even - APIS} more"),
        Checked("API costs whose half pays for GKE", None, 2 * even, "50 % less API costs alone don't"),
        *(
            Checked(
                f"{requests:,} requests a day, a month", said, requests * 30 * PER_MILLION / 1_000_000, "the document's prices of a request"
            )
            for requests, said in TRAFFIC.items()
        ),
        Checked("an idle cluster, an hour", _D("0.85"), _D("0.6625") + _D("0.1875"), "an L4 node and a system node"),
        Checked("5 GPUs, an hour", _D("3.50"), 5 * _D("0.6625") + _D("0.1875"), "agrees"),
        Checked("GB for 34B at 4 bits, on a V100", _D(16), _D(17), "does not fit"),
        Checked("GB for Falcon-180B at 4 bits, on two A100", _D(80), _D(90), "does not fit"),
    )
