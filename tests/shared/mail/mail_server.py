"""A mail server on loopback that does what a test wants, and keeps what it receives."""

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class MailServer:
    """The part of SMTP that a mailer needs."""

    tls: ssl.SSLContext | None = None
    #: Use TLS from the first byte.
    at_once: bool = False
    offers_starttls: bool = True
    #: user -> password; if empty, no login is offered.
    users: dict[str, str] = field(default_factory=dict)
    #: Command -> answers instead of the usual one. Each is used once, and the last one forever.
    answers: dict[str, list[str]] = field(default_factory=dict)
    #: Sent in plain text right after the answer to STARTTLS, as an attacker in the middle can.
    after_starttls: str = ""
    #: Never answer.
    hangs: bool = False
    port: int = 0
    mails: list[tuple[str, str, EmailMessage]] = field(default_factory=list)
    #: All lines received before and after TLS.
    plain: list[str] = field(default_factory=list)
    sealed: list[str] = field(default_factory=list)
    connections: int = 0
    #: Connections that have ended.
    ended: int = 0
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def wait_for(self, mails: int) -> None:
        async with asyncio.timeout(30), self.arrived:
            await self.arrived.wait_for(lambda: len(self.mails) >= mails)

    async def wait_for_connections(self, connections: int) -> None:
        async with asyncio.timeout(30), self.arrived:
            await self.arrived.wait_for(lambda: self.connections >= connections)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        async with self.arrived:
            self.arrived.notify_all()
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if self.hangs:
                await reader.read()
            else:
                await _Conversation(self, reader, writer).hold()
        writer.close()
        self.ended += 1
        async with self.arrived:
            self.arrived.notify_all()

    async def wait_until_ended(self, connections: int) -> None:
        async with asyncio.timeout(30), self.arrived:
            await self.arrived.wait_for(lambda: self.ended >= connections)

    async def keep(self, sender: str, to: str, body: bytes) -> None:
        mail = BytesParser(policy=default).parsebytes(body)
        self.mails.append((sender, to, mail))
        async with self.arrived:
            self.arrived.notify_all()


class _Conversation:
    def __init__(self, server: MailServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._sealed = server.at_once
        self._sender = ""
        self._to = ""

    async def hold(self) -> None:
        await self._say("220 mail.test")
        while line := (await self._reader.readline()).decode().strip():
            (self._server.sealed if self._sealed else self._server.plain).append(line)
            word = line.partition(" ")[0].upper()
            prepared = self._server.answers.get(word)
            if prepared:
                await self._say(prepared[0] if len(prepared) == 1 else prepared.pop(0))
                if self._server.answers[word][0].startswith("drop"):
                    return
                continue
            if not await self._answer(word, line):
                return

    async def _answer(self, word: str, line: str) -> bool:
        """Answer a command. Returns False at the end of the conversation."""
        match word:
            case "EHLO":
                offers = ["250-mail.test"]
                offers += ["250-STARTTLS"] if self._server.tls and self._server.offers_starttls and not self._sealed else []
                offers += ["250-AUTH PLAIN"] if self._server.users else []
                await self._say("\r\n".join([*offers, "250 8BITMIME"]))
            case "STARTTLS":
                await self._say("220 go" + (f"\r\n{self._server.after_starttls.rstrip()}" if self._server.after_starttls else ""))
                assert self._server.tls is not None
                await self._writer.start_tls(self._server.tls)
                self._sealed = True
            case "AUTH":
                _, user, password = base64.b64decode(line.split()[2]).decode().split("\0")
                await self._say("235 in" if self._server.users.get(user) == password else "535 no")
            case "MAIL":
                self._sender = line.partition("<")[2].partition(">")[0]
                await self._say("250 ok")
            case "RCPT":
                self._to = line.partition("<")[2].partition(">")[0]
                await self._say("250 ok")
            case "DATA":
                await self._say("354 go")
                body = (await self._reader.readuntil(b"\r\n.\r\n"))[:-3]
                # RFC 5321 §4.5.2: a client doubles the dot at the beginning of a line.
                await self._server.keep(self._sender, self._to, body.replace(b"\r\n..", b"\r\n."))
                await self._say("250 kept")
            case "QUIT":
                await self._say("221 bye")
                return False
            case _:
                await self._say("250 ok")
        return True

    async def _say(self, text: str) -> None:
        self._writer.write(text.encode() + b"\r\n")
        await self._writer.drain()


@contextlib.asynccontextmanager
async def serving(server: MailServer) -> AsyncIterator[MailServer]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=server.tls if server.at_once else None)
    async with listening:
        server.port = listening.sockets[0].getsockname()[1]
        yield server
        listening.close()


def throw_away_certificate(folder: Path, name: str = "localhost") -> tuple[ssl.SSLContext, Path]:
    """Return the server's TLS context, and the CA file that makes a client trust it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    ca_file, key_file = folder / "ca.pem", folder / "server-key.pem"
    ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca_file, key_file)
    return context, ca_file
