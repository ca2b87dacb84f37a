"""Write the text of every email. Pure. User-supplied names become one short line without URLs."""

from datetime import UTC, datetime
from typing import NamedTuple

from shared import currency, plan_names
from shared.api.notices import LimitUsed
from shared.mail import letters
from shared.types import MicroCredits

_MAX_NAME = 60
_NOT_YOU = "If this wasn't you, change your password now, and check your sessions and API keys."


class AccountMail(NamedTuple):
    subject: str
    text: str


def reset(username: str, page: str, token: str, minutes: int) -> AccountMail:
    """Write the password reset. ``page`` is where the user enters the token; empty if no public URL is set."""
    link = f"To choose a new one, open this link:\n\n{page}#{token}\n\nOr paste" if page else "To choose a new one, paste"
    return _text(
        "Set a new password",
        username,
        f"Someone requested a new password for this account.\n\n{link} this code into the password reset page:\n\n"
        f"{token}\n\nThe code works once and expires after {minutes} minutes. Your second factor doesn't change.\n\n"
        "If you didn't request this, ignore this email. Your password stays the same.",
    )


def verify_address(username: str, page: str, token: str, hours: int) -> AccountMail:
    """``page`` is as for ``reset``."""
    link = f"To verify this address, open this link:\n\n{page}#{token}\n\nOr paste" if page else "To verify this address, paste"
    return _text(
        "Verify your email address",
        username,
        f"This account is registered with your address. Verify it to get the tokens that your plan includes.\n\n"
        f"{link} this code into the page /verify, or run `aicli billing verify CODE`:\n\n{token}\n\n"
        f"The code works once and expires after {hours} hours. If you didn't register, ignore this email.",
    )


def reset_at_provider(username: str, provider: str) -> AccountMail:
    return _text(
        "Your account has no password",
        username,
        f"Someone requested a new password for this account, but it has none. Sign in with {one_line(provider)}.\n\n"
        "If you didn't request this, ignore this email.",
    )


def password_changed(username: str) -> AccountMail:
    return _text(
        "Your password was changed",
        username,
        f"The password of this account was just changed, and all other sessions were ended. Your API keys keep working.\n\n{_NOT_YOU}",
    )


def factor_removed(username: str) -> AccountMail:
    return _text(
        "Your second factor was removed",
        username,
        "An administrator just removed the second factor of this account and ended its sessions. Sign in with your "
        "password and set up a new one.\n\nIf you didn't request this, contact an administrator immediately.",
    )


def new_sign_in(username: str, at: datetime, address: str, agent: str, page: str) -> AccountMail:
    """``page`` is where the user switches such mails off; empty if no public URL is set."""
    seen = f"Time: {_time(at)}\nAddress: {one_line(address) or 'unknown'}\nBrowser: {one_line(agent) or 'unknown'}"
    return _text(
        "New sign-in to your account",
        username,
        f"Someone signed in to this account from a browser that we don't know.\n\n{seen}\n\n{_NOT_YOU}\n\n{_switch_off(page)}",
    )


def key_expires(username: str, name: str, preview: str, at: datetime, page: str) -> AccountMail:
    """``page`` is as for ``new_sign_in``."""
    return _text(
        "An API key expires soon",
        username,
        f"The API key {one_line(name)} ({preview}) expires on {_time(at)}. Programs that use it will then get an error.\n\n"
        f"Create a new key and replace this one before that day.\n\n{_switch_off(page)}",
    )


def about_account(username: str, organization: str | None, said: AccountMail, page: str, settings: str) -> AccountMail:
    """Complete one of the next texts. ``page`` is where the user does something about it, ``settings`` is as above."""
    whose = f"This is about the organization {one_line(organization)}.\n\n" if organization else ""
    link = f":\n\n{page}" if page else "."
    return _text(said.subject, username, f"{whose}{said.text}{link}\n\n{_switch_off(settings)}")


def limit_used(limit: LimitUsed, key: str | None, unit: str) -> AccountMail:
    """``unit``: the currency. ``key``: the name of the key that it is about."""
    counts = limit.used, limit.most, limit.most - limit.used
    if limit.of == "allowance":
        used, most, left = (f"{count:,} tokens" for count in counts)
    else:
        used, most, left = (currency.written(currency.minor(MicroCredits(count), unit), unit) for count in counts)
    what = {"allowance": "allowance", "budget": f"budget of the key {one_line(key)}" if key else "budget", "balance": "balance"}[limit.of]
    subject = f"The {what} is used up" if limit.percent == 100 else f"The {what} is {limit.percent} % used"
    then = f" It renews on {_time(limit.renews_at)}." if limit.renews_at else ""
    todo = {
        "allowance": "Requests that need more than the rest are paid from your balance, or as your plan says, and else refused.\n\n"
        "Add credits or choose a larger plan under Billing",
        "budget": "Requests that need more than the rest are refused.\n\n"
        + (
            "Set another budget, or create another key, under API keys"
            if key
            else "Ask an administrator for more. See what you spent under Billing"
        ),
        "balance": "Without it, only what your plan includes still works.\n\nAdd credits under Billing",
    }[limit.of]
    return AccountMail(subject, f"Used: {used} of {most}. Left: {left}.{then} {todo}")


def payment_late(invoice: str | None, due_at: datetime | None, *, is_last: bool) -> AccountMail:
    if invoice is None or due_at is None:
        text = "We could not collect the money for your plan. If that fails again, the plan ends.\n\nCheck your card under Billing"
        return AccountMail("A payment failed", text)
    then = "What it is for ends now" if is_last else "If it isn't paid a week after that, what it is for ends"
    return AccountMail(f"The invoice {invoice} is not paid", f"It was due on {_time(due_at)}. {then}.\n\nFind it under Billing")


def plan_changed(before: str, after: str) -> AccountMail:
    old, new = (one_line(plan_names.name_of(plan)) for plan in (before, after))
    return AccountMail("Your plan has changed", f"Your plan is now {new}; it was {old}.\n\nSee what it includes under Billing")


def address_changed_to(username: str) -> AccountMail:
    return _text("Your email address was changed", username, "We now send emails about your account to this address.")


def address_changed_from(username: str) -> AccountMail:
    """Write the notice to the old address, which can no longer reset the password."""
    return _text(
        "Your email address was changed",
        username,
        "We now send emails about your account to another address.\n\n"
        "If this wasn't you, contact an administrator immediately: someone else has access to your account.",
    )


def invitation(organisation: str, by: str, page: str, token: str, days: int) -> AccountMail:
    """Write the invitation. ``page`` is as for ``reset``."""
    link = (
        f"To accept, open this link and sign in or register:\n\n{page}#{token}\n\nOr paste"
        if page
        else "To accept, sign in or register and paste"
    )
    return AccountMail(
        f"Join {one_line(organisation)}",
        f"Hello,\n\n{one_line(by)} invited you to the organization {one_line(organisation)}.\n\n"
        f"{link} this code under Organizations:\n\n{token}\n\n"
        f"The code works once and expires after {days} days. If you don't know the sender, ignore this email.\n",
    )


def colleague_invitation(by: str, offer: str, page: str, token: str, days: int) -> AccountMail:
    """Write the invitation to the mesh itself. ``offer`` is "a developer"; ``page`` is as for ``reset``."""
    link = f"To accept, open this link:\n\n{page}#{token}\n\nOr paste" if page else "To accept, paste"
    return AccountMail(
        f"{one_line(by)} invited you to aimesh",
        f"Hello,\n\n{one_line(by)} invited you to an AI platform (aimesh), as {one_line(offer)}.\n\n"
        f"{link} this code into the page /join there:\n\n{token}\n\n"
        f"The code works once, for this address, and expires after {days} days. If you don't know the sender, ignore this email.\n",
    )


def erasure_planned(username: str, at: datetime, page: str) -> AccountMail:
    where = f"\n\n{page}" if page else ""
    return _text(
        "Your account will be deleted",
        username,
        f"As you requested, we will delete this account and your personal data on {_time(at)}. Your account works until then.\n\n"
        f"To cancel the deletion, sign in before that day.{where}",
    )


def erasure_called_off(username: str) -> AccountMail:
    return _text(
        "Account deletion canceled", username, f"This account won't be deleted: someone signed in or canceled the deletion.\n\n{_NOT_YOU}"
    )


def test_mail(username: str) -> AccountMail:
    return _text("Test email", username, "You sent this email from the setup page of aimesh. Email works.")


def _switch_off(page: str) -> str:
    return "To stop these emails, clear the box under Notifications in your settings" + (f":\n\n{page}" if page else ".")


def _text(subject: str, username: str, text: str) -> AccountMail:
    return AccountMail(subject, f"Hello {one_line(username)},\n\n{text}\n")


def one_line(text: str) -> str:
    return letters.one_line(text, _MAX_NAME)


def _time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%d %B %Y, %H:%M} UTC"
