"""One mail to the mail server and out of our hands. Blocks, so it runs in the postman's thread; ``cut`` comes from another one."""

import contextlib
import smtplib
import socket
import ssl
from dataclasses import dataclass

from shared.mail.smtp_url import MailServer, Security

#: For each step that waits for the server; all of them together have the postman's deadline.
_STEP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Envelope:
    sender: str
    to: str
    #: What the server is told that we are called.
    our_name: str
    body: bytes


class NotDeliveredError(Exception):
    """``for_good``: trying again changes nothing. The reason has no word of the mail, nor of the server, which may quote an address."""

    def __init__(self, reason: str, *, for_good: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.for_good = for_good


class Delivery:
    def __init__(self, server: MailServer, trusted: ssl.SSLContext | None, envelope: Envelope) -> None:
        """``trusted``: for a server that is reached over TLS."""
        self._server = server
        self._trusted = trusted
        self._envelope = envelope
        self._smtp = self._unconnected()
        self._is_cut = False

    def run(self) -> None:
        """Raises NotDeliveredError."""
        if self._is_cut:
            raise NotDeliveredError("it took too long", for_good=False)
        try:
            self._converse()
        except (OSError, ValueError) as error:  # SMTPException is an OSError; a certificate's name that does not fit may be a ValueError
            raise _judged(error) from error
        finally:
            self._smtp.close()

    def cut(self) -> None:
        """End it from outside, now."""
        self._is_cut = True
        sock = self._smtp.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _unconnected(self) -> smtplib.SMTP:
        name = self._envelope.our_name
        smtp: smtplib.SMTP
        if self._server.security is Security.TLS:
            smtp = smtplib.SMTP_SSL(local_hostname=name, timeout=_STEP_SECONDS, context=self._trusted)
        else:
            smtp = smtplib.SMTP(local_hostname=name, timeout=_STEP_SECONDS)
        # Whose certificate it must be. Given to the constructor it would connect at once, and there would be nothing to cut meanwhile.
        smtp._host = self._server.host  # type: ignore[attr-defined]
        return smtp

    def _converse(self) -> None:
        server, smtp, envelope = self._server, self._smtp, self._envelope
        code, _ = smtp.connect(server.host, server.port)
        if code != 220:
            raise smtplib.SMTPConnectError(code, b"")
        if server.security is Security.STARTTLS:
            smtp.starttls(context=self._trusted)
        if server.username is not None and server.password is not None:
            smtp.login(server.username, server.password)
        smtp.sendmail(envelope.sender, [envelope.to], envelope.body)
        # It is theirs now; a server that says no goodbye has it all the same.
        with contextlib.suppress(OSError):
            smtp.quit()


def _judged(error: Exception) -> NotDeliveredError:
    match error:
        case smtplib.SMTPRecipientsRefused():
            code = next((code for code, _ in error.recipients.values()), 0)
            return _by_code(code, "the server refuses the recipient")
        case smtplib.SMTPAuthenticationError():
            return _by_code(error.smtp_code, "the server does not take our user name and password")
        case smtplib.SMTPResponseException():
            return _by_code(error.smtp_code, "the server refuses")
        case _:
            return NotDeliveredError(_reason(error), for_good=isinstance(error, smtplib.SMTPNotSupportedError))


def _reason(error: Exception) -> str:
    match error:
        case smtplib.SMTPNotSupportedError():
            return "the server does not offer what the settings ask for (STARTTLS, or a login)"
        case ssl.SSLCertVerificationError():
            return f"the server's certificate is not good: {error.verify_message}"
        case TimeoutError():
            return "the server does not answer in time"
        case _:
            return f"the connection failed: {type(error).__name__}"


def _by_code(code: int, reason: str) -> NotDeliveredError:
    """5yz is a final no, RFC 5321 §4.2.1."""
    return NotDeliveredError(f"{reason} ({code})", for_good=500 <= code <= 599)
