"""Hand one mail over to the mail server with aiosmtplib."""

import contextlib
import ssl
from dataclasses import dataclass

import aiosmtplib
from aiosmtplib import SMTP

from shared.mail.smtp_url import MailServer, Security

#: For each step that waits for the server. ``mailer.DEADLINE_SECONDS`` limits the whole delivery.
_STEP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Envelope:
    sender: str
    to: str
    #: The name that we give in EHLO.
    our_name: str
    body: bytes


class NotDeliveredError(Exception):
    """``for_good``: a retry cannot help. The reason quotes neither the mail nor the server, whose answer may contain an address.

    ``answer`` is what the server said, if anything: only for the recipient, never for a log.
    """

    def __init__(self, reason: str, *, for_good: bool, answer: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.for_good = for_good
        self.answer = answer


async def deliver(server: MailServer, trusted: ssl.SSLContext | None, envelope: Envelope) -> str:
    """Return the server's answer to the mail. ``trusted`` is required unless ``server.security`` is NONE. Raises NotDeliveredError."""
    smtp = SMTP(
        hostname=server.host,
        port=server.port,
        local_hostname=envelope.our_name,
        timeout=_STEP_SECONDS,
        use_tls=server.security is Security.TLS,
        # ``_start_tls`` does it: aiosmtplib has no separate error for a server without STARTTLS.
        start_tls=False,
        tls_context=trusted,
    )
    try:
        await smtp.connect()
        if server.security is Security.STARTTLS:
            await _start_tls(smtp)
        if server.username is not None and server.password is not None:
            await _log_in(smtp, server.username, server.password)
        _, answer = await smtp.sendmail(envelope.sender, envelope.to, envelope.body)
        # The server has the mail, even if it doesn't answer to QUIT.
        with contextlib.suppress(aiosmtplib.SMTPException, OSError):
            await smtp.quit()
        return answer
    except (aiosmtplib.SMTPException, OSError, ValueError) as error:
        raise _translate(error) from error
    finally:
        smtp.close()


async def _start_tls(smtp: SMTP) -> None:
    await smtp.ehlo()
    if not smtp.supports_extension("starttls"):
        raise _not_supported()
    await smtp.starttls()


async def _log_in(smtp: SMTP, username: str, password: str) -> None:
    # RFC 3207 §4.2: what the server said before STARTTLS no longer counts.
    await smtp.ehlo()
    if not smtp.supported_auth_methods:
        raise _not_supported()
    await smtp.login(username, password)


def _not_supported() -> NotDeliveredError:
    return NotDeliveredError("the server does not offer what the settings ask for (STARTTLS, or a login)", for_good=True)


def _translate(error: Exception) -> NotDeliveredError:
    match error:
        case aiosmtplib.SMTPRecipientsRefused():
            return _by_code(error.recipients[0].code, "the server refuses the recipient", error.recipients[0].message)
        case aiosmtplib.SMTPAuthenticationError():
            return _by_code(error.code, "the server rejects our user name and password", error.message)
        case aiosmtplib.SMTPResponseException():
            return _by_code(error.code, "the server refuses", error.message)
        case TimeoutError():
            return NotDeliveredError("the server does not answer in time", for_good=False)
        case aiosmtplib.SMTPConnectError():
            return _connection_failed(error.__cause__ or error)
        case _:
            return _connection_failed(error)


def _connection_failed(error: BaseException) -> NotDeliveredError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return NotDeliveredError(f"the server's certificate is not valid: {error.verify_message}", for_good=False)
    return NotDeliveredError(f"the connection failed: {type(error).__name__}", for_good=False)


def _by_code(code: int, reason: str, answer: str) -> NotDeliveredError:
    """RFC 5321 §4.2.1: 5yz is final."""
    return NotDeliveredError(f"{reason} ({code})", for_good=500 <= code <= 599, answer=answer)
