"""How a login with the provider fails: who is told what. No message holds a code, a token, a secret or what the provider wrote."""

from shared import errors


def start_again(message: str) -> errors.NotAuthenticated:
    """Another try from the beginning may succeed; this one cannot."""
    return errors.NotAuthenticated(message, hint="start the login again")


def not_vouched_for(what: str) -> errors.NotAuthenticated:
    """The ID token is not one that proves who this is."""
    return errors.NotAuthenticated(
        f"the login provider's answer is not accepted: {what}", hint="start the login again; if it happens again, tell an administrator"
    )


def unavailable(what: str) -> errors.Unavailable:
    """The provider is not there, or says what no provider may say."""
    return errors.Unavailable(f"the login provider {what}", hint="try again in a minute, or log in with a password")


def misconfigured(what: str, hint: str) -> errors.Unavailable:
    """Nothing that the person at the browser can change; the hint is for who runs this mesh."""
    return errors.Unavailable(f"the login provider {what}", hint=f"an administrator: {hint}")
