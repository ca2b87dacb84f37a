"""What mails say, all of them. Pure; what a person chose becomes one short line in them, and no address of a page."""

from datetime import datetime
from typing import NamedTuple

from shared.mail import letters

_LONGEST_NAME = 60
_NOT_YOU = "If this was not you, set a new password now and look through your sessions and keys."


class Text(NamedTuple):
    subject: str
    text: str


def reset(username: str, page: str, token: str, minutes: int) -> Text:
    """``page``: where the token is shown or typed; empty where nobody has said at what address the pages are."""
    link = f"Open this link and choose a new one:\n\n{page}#{token}\n\nor paste" if page else "Paste"
    return _text(
        "Set a new password",
        username,
        f"somebody, we hope you, asked for a new password for this account.\n\n{link} this code on the page for forgotten passwords:\n\n"
        f"{token}\n\nIt works once, for {minutes} minutes. Your second factor, where you have one, stays as it is.\n\n"
        "If you did not ask for it, do nothing: your password stays.",
    )


def reset_at_provider(username: str, provider: str) -> Text:
    return _text(
        "Your account has no password",
        username,
        f"somebody, we hope you, asked for a new password for this account. It has none: log in with {_line(provider)}.\n\n"
        "If you did not ask for it, do nothing.",
    )


def password_changed(username: str) -> Text:
    return _text(
        "Your password was changed",
        username,
        f"the password of this account was changed just now, and other sessions were ended. Your API keys go on working.\n\n{_NOT_YOU}",
    )


def factor_removed(username: str) -> Text:
    return _text(
        "Your second factor was removed",
        username,
        "an administrator removed the second factor of this account just now, and ended its sessions. Log in with your "
        "password and set a new one up.\n\nIf you did not ask for it, tell an administrator at once.",
    )


def address_changed_to(username: str) -> Text:
    """To the new one."""
    return _text("This is your new address", username, "mails about your account come to this address from now on.")


def address_changed_from(username: str) -> Text:
    """To the old one, which cannot set a new password any more."""
    return _text(
        "Your address was changed",
        username,
        "mails about your account go to another address from now on.\n\n"
        "If this was not you, tell an administrator at once: somebody else is in your account.",
    )


def new_login(username: str, where: str, program: str, at: datetime) -> Text:
    return _text(
        "A new login",
        username,
        f"somebody logged in to this account.\n\nWhen: {_time(at)}\nFrom: {_line(where) or 'unknown'}\n"
        f"With: {_line(program) or 'unknown'}\n\nIf it was you, all is well. {_NOT_YOU}",
    )


def invitation(organisation: str, by: str, page: str, token: str, days: int) -> Text:
    """``page`` as for ``reset``."""
    link = f"Open this link and log in, or register first:\n\n{page}#{token}\n\nor paste" if page else "Log in, or register, and paste"
    return Text(
        f"Join {_line(organisation)}",
        f"Hello,\n\n{_line(by)} invites you to the organisation {_line(organisation)}.\n\n"
        f"{link} this code on the page of your organisations:\n\n{token}\n\n"
        f"It works once, for {days} days. If you do not know them, do nothing.\n",
    )


def erasure_planned(username: str, at: datetime, page: str) -> Text:
    where = f"\n\n{page}" if page else ""
    return _text(
        "Your account will be deleted",
        username,
        f"as you asked, this account and all that says who you are will be deleted on {_time(at)}. Until then all works as before.\n\n"
        f"If you change your mind, or if it was not you: log in before that day, and it is called off.{where}",
    )


def erasure_called_off(username: str) -> Text:
    return _text("Your account stays", username, f"this account will not be deleted: somebody logged in, or called it off.\n\n{_NOT_YOU}")


def _text(subject: str, username: str, text: str) -> Text:
    return Text(subject, f"Hello {_line(username)},\n\n{text}\n")


def _line(text: str) -> str:
    return letters.one_line(text, _LONGEST_NAME)


def _time(at: datetime) -> str:
    return f"{at:%d %B %Y, %H:%M} UTC"
