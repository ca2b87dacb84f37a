"""Decide the state of each item of the administrators' setup checklist, from facts. Pure."""

from dataclasses import dataclass, replace

from services.web import rendering
from shared.api.gateway import NodeRows
from shared.api.ledger import ModelPrices
from shared.api.service_settings import SetupFacts
from shared.types import Role


@dataclass(frozen=True, slots=True)
class SetupItem:
    name: str
    title: str
    #: None if a service did not respond.
    is_done: bool | None
    #: One sentence about its state.
    text: str
    #: Where it is done.
    href: str
    label: str

    @property
    def tone(self) -> str:
        return {True: "good", False: "warn", None: "off"}[self.is_done]

    @property
    def state(self) -> str:
        return {True: "Done", False: "To do", None: "Unknown"}[self.is_done]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checklist:
    items: tuple[SetupItem, ...]
    open_registration: bool
    has_mail_server: bool
    is_dismissed: bool

    @property
    def done(self) -> int:
        return sum(item.is_done is True for item in self.items)

    @property
    def is_shown(self) -> bool:
        """Return whether the overview shows it."""
        return not self.is_dismissed and self.done < len(self.items)


def checklist(facts: SetupFacts, site_url: str, prices: ModelPrices | None, nodes: NodeRows | None) -> Checklist:
    """``site_url`` is PUBLIC_URL as web has it. ``prices`` and ``nodes`` are None if the gateway did not respond."""
    of_auth = (_second_factor(facts), _address(facts, site_url), _mail(facts), _registration(facts))
    items = (*of_auth, _machine(nodes), _price(prices), _colleague(facts))
    return Checklist(
        items=items, open_registration=facts.open_registration, has_mail_server=facts.has_mail_server, is_dismissed=facts.is_dismissed
    )


def _second_factor(facts: SetupFacts) -> SetupItem:
    done = facts.has_second_factor
    text = "Your account asks for a code at sign-in." if done else "Protect your account with an authenticator app."
    return SetupItem("second-factor", "Second factor", done, text, "/settings/security", "Security")


def _address(facts: SetupFacts, site_url: str) -> SetupItem:
    urls = (site_url, facts.public_url)
    done = all(url.startswith("https://") for url in urls)
    text = f"People open this mesh at {facts.public_url}, over TLS."
    if not all(urls):
        text = "Set PUBLIC_URL to the address that people open, so that links in emails and code samples work."
    elif not done:
        text = f"{facts.public_url} has no TLS: put a TLS proxy in front, and set PUBLIC_URL to its https:// address."
    return SetupItem("address", "Address and TLS", done, text, "/admin/settings", "Settings")


def _mail(facts: SetupFacts) -> SetupItem:
    text = "Set SMTP_URL: until then, invitations and password resets are only printed to auth’s log."
    if facts.has_mail_server:
        text = "Send yourself an email to see whether the mail server takes it."
    done = facts.has_mail_server and facts.mail_tested_at is not None
    if done and facts.mail_tested_at is not None:
        text = f"The mail server accepted a test email on {rendering.day(facts.mail_tested_at)}."
    return SetupItem("mail", "Email", done, text, "/admin/settings", "Settings")


def _registration(facts: SetupFacts) -> SetupItem:
    text = (
        "Open: anyone who can reach this page can register." if facts.open_registration else "Closed: only people you invite can register."
    )
    if not facts.is_registration_confirmed:
        text += " Keep it, or change OPEN_REGISTRATION."
    return SetupItem("registration", "Registration", facts.is_registration_confirmed, text, "/admin/settings", "Settings")


def _machine(nodes: NodeRows | None) -> SetupItem:
    workers = 0 if nodes is None else sum(node.role is Role.WORKER and node.alive for node in nodes.nodes)
    text = f"Machines online: {workers}." if workers else "No machine is online: create a ticket and join one."
    return _of_gateway(nodes, SetupItem("machine", "First machine", workers > 0, text, "/admin/nodes/tickets", "Tickets"))


def _price(prices: ModelPrices | None) -> SetupItem:
    done = prices is not None and bool(prices.prices)
    text = "Requests are charged by your prices." if done else "Every model is free until you set a price."
    return _of_gateway(prices, SetupItem("price", "First price", done, text, "/admin/prices", "Prices"))


def _colleague(facts: SetupFacts) -> SetupItem:
    text = "Your invitation has not been accepted yet." if facts.invitations else "You’re the only user: invite someone."
    if facts.colleagues:
        text = "Other people have accounts here."
    return SetupItem("colleague", "First colleague", facts.colleagues > 0, text, "/admin/invitations", "Invite")


def _of_gateway(answer: object | None, item: SetupItem) -> SetupItem:
    return item if answer is not None else replace(item, is_done=None, text="The gateway isn’t responding.")
