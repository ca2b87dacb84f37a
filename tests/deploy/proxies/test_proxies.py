"""deploy/proxy with the real programs, in front of two gateways and the web service. The certificates are from a real ACME server."""

import asyncio
import json
import signal
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aimesh
import httpx
import pytest
import pytest_asyncio

from tests import capabilities, replicas
from tests.deploy.proxies import site, traffic
from tests.deploy.proxies.programs import NOBODY, PROGRAMS, SITE, Proxy
from tests.deploy.proxies.site import TOKEN_SECONDS, Site
from tests.deploy.proxies.traffic import Stream
from tests.stacks import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

MEBIBYTE = 1024 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def behind(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    if all(capabilities.CAPABILITIES[name]() for name in PROGRAMS):
        capabilities.require(next(iter(PROGRAMS)))
    async with site.site(tmp_path_factory.mktemp("site")) as opened:
        yield opened


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> str:
    """Runs before the stack fixture, so that the stack doesn't start for a program that isn't installed."""
    capabilities.require(request.param)
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxy(program: str, behind: Site, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    started = PROGRAMS[program](tmp_path_factory.mktemp(program), behind.backends)
    with started.run():
        await started.ready()

        async def serves() -> bool:
            return (await traffic.ask(started, traffic.get("/v1/models", f"authorization: Bearer {behind.key}\r\n"))).status == 200

        await until(serves, seconds=20, what=f"{program} passes requests on", ignoring=(OSError, EOFError))
        yield started


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def _idle(proxy: Proxy, behind: Site) -> None:
    """Wait until nothing runs and the proxy uses both gateways, including a gateway that has just restarted."""
    await site.idle(behind)

    async def is_used() -> bool:
        bearer = f"authorization: Bearer {behind.key}\r\n"
        answers = [await traffic.ask(proxy, traffic.get("/v1/models", bearer)) for _ in range(4)]
        assert [answer.status for answer in answers] == [200] * 4
        return await behind.second_has_served()

    await until(is_used, what="the second gateway is used")


async def let_in(proxy: Proxy, address: str, *, is_operator: bool) -> None:
    """Change who may open Grafana, and wait until the proxy has reloaded."""
    proxy.write(operators=address if is_operator else NOBODY)
    await proxy.reload()

    async def is_done() -> bool:
        return ((await traffic.ask(proxy, traffic.get("/grafana/"), address)).body == b"internal") is is_operator

    await until(is_done, what=f"Grafana is open for {address}: {is_operator}", ignoring=(OSError, EOFError))


@asynccontextmanager
async def operators(proxy: Proxy, address: str) -> AsyncIterator[None]:
    await let_in(proxy, address, is_operator=True)
    try:
        yield
    finally:
        await let_in(proxy, address, is_operator=False)


def json_of(answer: traffic.Answer) -> dict[str, object]:
    assert answer.headers["content-type"].startswith("application/json"), answer
    return dict(json.loads(answer.body))


# --- routes ---------------------------------------------------------------------------------------------------------------------


async def test_it_passes_the_api_to_the_gateways_and_the_rest_to_web(proxy: Proxy, behind: Site) -> None:
    bearer = f"authorization: Bearer {behind.key}\r\n"
    assert json_of(await traffic.ask(proxy, traffic.get("/v1/models", bearer)))["object"] == "list"
    assert "requests" in json_of(await traffic.ask(proxy, traffic.get("/api/requests", bearer)))
    login = await traffic.ask(proxy, traffic.get("/login"))
    assert login.status == 200
    assert b"<form" in login.body
    # A page, although its path begins like the API's.
    page = await traffic.ask(proxy, traffic.get("/api-keys"))
    assert page.status in {302, 303}
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.plain_port)
    writer.write(traffic.get("/login?next=%2F"))
    plain = (await reader.read()).decode()
    writer.close()
    assert plain.split(" ")[1] in {"301", "308"}
    assert f"ocation: https://{SITE}" in plain


async def test_it_uses_both_gateways(proxy: Proxy, behind: Site) -> None:
    streams = [Stream() for _ in range(6)]
    async with asyncio.TaskGroup() as tasks:
        for stream in streams:
            tasks.create_task(traffic.listen_to(proxy, behind.key, 20, stream))

        async def both_work() -> bool:
            return min(await behind.running()) >= 2

        await until(both_work, what="each gateway has two of the streams")


async def test_grafana_and_prometheus_are_for_operators(proxy: Proxy, behind: Site) -> None:
    paths = (
        "/grafana",
        "/grafana/",
        "/grafana/api/health",
        "/prometheus/api/v1/query",
        "//grafana/",
        "/x/../grafana/",
        "/%67rafana/",
        "/Grafana/",
    )
    forged = "x-forwarded-for: 127.0.0.2\r\nx-real-ip: 127.0.0.2\r\nforwarded: for=127.0.0.2\r\n"
    behind.internal.clear()
    for path in paths:
        assert (await traffic.ask(proxy, traffic.get(path))).status >= 300, path
    assert behind.internal == []
    async with operators(proxy, "127.0.0.2"):
        assert (await traffic.ask(proxy, traffic.get("/prometheus/-/ready"), "127.0.0.2")).body == b"internal"
        behind.internal.clear()
        for path in paths:
            assert (await traffic.ask(proxy, traffic.get(path, forged), "127.0.0.3")).status >= 300, path
        assert behind.internal == []


# --- refusals -------------------------------------------------------------------------------------------------------------------


async def test_it_speaks_tls_1_3_only(proxy: Proxy) -> None:
    with pytest.raises((ssl.SSLError, OSError)):
        await proxy.connect(tls=proxy.tls(ssl.TLSVersion.TLSv1_2))
    _, writer = await proxy.connect()
    assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
    writer.transport.abort()


#: Headers of a client at another address.
FORGED = (
    "x-forwarded-for: 127.0.0.9\r\n",
    "x-forwarded-for: 127.0.0.9, 127.0.0.1\r\n",
    "x-forwarded-for: 127.0.0.9\r\nx-forwarded-for: 127.0.0.9\r\n",
    "X_Forwarded_For: 127.0.0.9\r\n",
    "forwarded: for=127.0.0.9\r\nx-real-ip: 127.0.0.9\r\nx-client-ip: 127.0.0.9\r\n",
    "x-forwarded-for: 127.0.0.9\r\nconnection: x-forwarded-for\r\n",
)


async def test_the_gateway_sees_the_address_of_the_client_and_nothing_forged(proxy: Proxy, behind: Site) -> None:
    """A key that is bound to a network works from there, and from nowhere else, whatever the headers."""
    key = (await behind.key_for("127.0.0.9/32")).secret
    bearer = f"authorization: Bearer {key}\r\n"
    assert (await traffic.ask(proxy, traffic.get("/v1/models", bearer), "127.0.0.9")).status == 200
    assert (await traffic.ask(proxy, traffic.get("/v1/models", bearer + "x-forwarded-for: 127.0.0.8\r\n"), "127.0.0.9")).status == 200
    for header in FORGED:
        answer = await traffic.ask(proxy, traffic.get("/v1/models", bearer + header), "127.0.0.8")
        assert (answer.status, b"127.0.0.8" in answer.body) == (403, True), (header, answer)


async def test_a_machine_reaches_nats_which_sees_its_address_and_nothing_forged(proxy: Proxy, behind: Site) -> None:
    """NATS believes the first address in X-Forwarded-For, whoever wrote it."""
    for header in ("", *FORGED):
        before = len(behind.seen_at_nats())
        async with traffic.web_socket(proxy, header, "127.0.0.8") as frame:
            assert b"INFO {" in frame
            assert behind.seen_at_nats()[before:] == ["127.0.0.8"], header


@pytest.mark.parametrize("program", [name for name, each in PROGRAMS.items() if each.reaches_nats], indirect=True, scope="module")
async def test_an_address_that_offers_many_web_sockets_is_refused_and_others_are_not(proxy: Proxy) -> None:
    """NATS sees one address, so it can't count the logins of each. Where /mesh leads to web, web counts."""
    offer = traffic.offer()

    async def is_refused() -> bool:
        offers = [traffic.ask(proxy, offer, "127.0.0.7") for _ in range(40)]
        statuses = {answer.status for answer in await asyncio.gather(*offers)}
        assert statuses <= {101, 429}, statuses
        return 429 in statuses

    await until(is_refused, what="the limit is reached")
    async with traffic.web_socket(proxy, "", "127.0.0.8") as frame:
        assert b"INFO {" in frame


@pytest.mark.parametrize("headers", ["", "transfer-encoding: chunked\r\n"], ids=["length", "chunked"])
async def test_a_prompt_may_have_more_than_one_mebibyte(proxy: Proxy, behind: Site, headers: str) -> None:
    body = json.dumps({"model": "echo", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}).encode()
    answer = await traffic.ask(proxy, traffic.post("/v1/chat/completions", behind.key, body.ljust(MEBIBYTE + 1), headers))
    assert answer.status == 200, answer


#: Requests that two servers could read differently.
AMBIGUOUS = {
    "two lengths": "content-length: 4\r\ncontent-length: 5\r\n\r\nabcde",
    "a list of lengths": "content-length: 4, 5\r\n\r\nabcde",
    "a signed length": "content-length: +4\r\n\r\nabcd",
    "a negative length": "content-length: -1\r\n\r\n",
    "an unknown coding": "transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked twice": "transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked is not last": "transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a space before the colon": "transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    "a header without a name": ": chunked\r\n\r\n",
    "a NUL in a value": "x-a: b\0c\r\n\r\n",
    "a bad chunk size": "transfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    "two hosts": f"host: {SITE}\r\n\r\n",
}
#: Requests that RFC 9112 lets a proxy repair. The proxy refuses the request, or forwards a request with a single reading.
REPAIRABLE = {
    "length and chunked": "content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded line": "x-a: b\r\n c\r\ncontent-length: 2\r\n\r\n{}",
    "a folded coding": "transfer-encoding:\r\n chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a bare line feed": "x-a: b\ncontent-length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("name", AMBIGUOUS)
async def test_it_refuses_a_request_that_could_be_read_in_two_ways(proxy: Proxy, behind: Site, name: str) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {SITE}\r\nauthorization: Bearer {behind.key}\r\ncontent-type: application/json\r\n"
    statuses = await traffic.exchange(proxy, (head + AMBIGUOUS[name]).encode("latin-1"))
    assert len(statuses) <= 1, statuses
    # 500 and 502: the proxy saw the mistake after it had forwarded the head; the gateway gets no complete request.
    assert all(status in {400, 411, 413, 500, 501, 502} for status in statuses), statuses


async def test_what_it_repairs_has_one_reading(proxy: Proxy, behind: Site) -> None:
    async with operators(proxy, "127.0.0.1"):
        for name, rest in REPAIRABLE.items():
            behind.internal.clear()
            statuses = await traffic.exchange(proxy, f"POST /grafana/ HTTP/1.1\r\nhost: {SITE}\r\n{rest}".encode())
            assert statuses in ([], [200], [400], [501]), (name, statuses)
            assert len(behind.internal) == (statuses == [200]), (name, statuses, behind.internal)
            print(f"PROXY {proxy.name}: {name}: {'repaired' if behind.internal else 'refused'}")
            for head in behind.internal:
                lines = head.lower().split("\r\n")[1:]
                framing = [line for line in lines if line.startswith(("content-length:", "transfer-encoding:"))]
                assert len(framing) <= 1, (name, head)
                assert not any(line.startswith((" ", "\t")) or "\n" in line for line in lines), (name, head)


# --- streams --------------------------------------------------------------------------------------------------------------------


async def test_tokens_arrive_when_they_are_made(proxy: Proxy, behind: Site) -> None:
    stream = await traffic.listen_to(proxy, behind.key, 6, Stream())
    assert (stream.words, stream.complete) == ([f"w{number}" for number in range(6)], True), stream
    pauses = [later - earlier for earlier, later in zip(stream.times, stream.times[1:], strict=False)]
    assert min(pauses) > TOKEN_SECONDS / 2, pauses


class ThroughProxy(httpx.AsyncHTTPTransport):
    """Resolves the site's name to the proxy."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(verify=proxy.tls())
        self._port = proxy.port

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(host="127.0.0.1", port=self._port)
        request.extensions["sni_hostname"] = SITE
        return await super().handle_async_request(request)


@pytest.mark.parametrize("is_stream", [True, False], ids=["streamed", "whole"])
async def test_a_client_that_leaves_stops_the_worker(proxy: Proxy, behind: Site, is_stream: bool) -> None:
    body = {"model": "echo", "stream": is_stream, "messages": [{"role": "user", "content": traffic.prompt(100)}]}
    bearer = {"authorization": f"Bearer {behind.key}"}
    async with httpx.AsyncClient(transport=ThroughProxy(proxy), headers=bearer, timeout=60) as http:
        heard = asyncio.Event()

        async def ask() -> None:
            async with http.stream("POST", f"https://{SITE}/v1/chat/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if '"content":" w1"' in line:
                        heard.set()

        async def busy() -> bool:
            return await behind.busy_slots() == 1

        asked = asyncio.create_task(ask())
        await until(busy, what="the worker writes")
        if is_stream:
            await heard.wait()
        asked.cancel()
        left_at = time.monotonic()

        async def is_free() -> bool:
            return not await busy()

        await until(is_free, what="the worker stops")
        took = time.monotonic() - left_at
    print(f"PROXY {proxy.name}: the worker stopped {took:.2f} s after the client had left")
    assert took <= 1.0


@asynccontextmanager
async def streaming(proxy: Proxy, behind: Site, count: int, words: int, a_second: int = 100) -> AsyncIterator[list[Stream]]:
    """Run this many streams, all of which have begun; the end of the block waits for them."""
    streams = [Stream() for _ in range(count)]
    tls = proxy.tls()
    async with asyncio.TaskGroup() as tasks:
        for stream in streams:
            tasks.create_task(_begin_again(proxy, behind, words, stream, tls))
            await asyncio.sleep(1 / a_second)
        for stream in streams:
            await stream.begun.wait()
        yield streams


async def _begin_again(proxy: Proxy, behind: Site, words: int, stream: Stream, tls: ssl.SSLContext) -> None:
    """Retry as clients do: on a busy machine the ledger may not answer in time, and the gateway refuses the request."""
    for _ in range(5):
        await traffic.listen_to(proxy, behind.key, words, stream, tls)
        if stream.words or "ledger_unavailable" not in stream.broken:
            break
        print(f"PROXY {proxy.name}: the ledger was too slow for a stream's begin")
        await asyncio.sleep(TOKEN_SECONDS)
    stream.begun.set()


def assert_all_complete(streams: list[Stream], words: int) -> None:
    wanted = traffic.prompt(words).split()
    bad = [stream for stream in streams if not stream.complete or stream.words != wanted]
    assert not bad, f"{len(bad)} of {len(streams)}: {bad[:2]}"


@pytest.mark.nightly("long")
async def test_streams_survive_a_reload_and_the_sigterm_of_a_gateway(proxy: Proxy, behind: Site) -> None:
    async with streaming(proxy, behind, count=30, words=24) as streams:
        assert min(await behind.running()) >= 10
        proxy.write()
        await proxy.reload()
        await behind.end_second(signal.SIGTERM)
        # New requests reach the other gateway at once.
        for _ in range(40):
            assert (await traffic.ask(proxy, traffic.get("/v1/models", f"authorization: Bearer {behind.key}\r\n"))).status == 200
        assert not any(stream.complete for stream in streams)
    assert_all_complete(streams, 24)


@pytest.mark.nightly("long")
async def test_kill_9_of_a_gateway_ends_its_streams_only_and_our_sdk_resumes_them(proxy: Proxy, behind: Site) -> None:
    words = 16
    async with (
        httpx.AsyncClient(transport=ThroughProxy(proxy)) as http,
        aimesh.AsyncClient(behind.key, f"https://{SITE}", http=http) as client,
    ):

        async def resume() -> str:
            async with client.stream(traffic.prompt(words), model="echo") as answer:
                return "".join([piece async for piece in answer])

        async with asyncio.TaskGroup() as tasks:
            resumed = [tasks.create_task(resume()) for _ in range(6)]

            async def all_run() -> bool:
                return sum(await behind.running()) == 6

            await until(all_run, what="the SDK's streams run")
            async with streaming(proxy, behind, count=12, words=words) as streams:
                kept, lost = await behind.running()
                assert kept + lost == 18
                await behind.end_second(signal.SIGKILL)
    broken = [stream for stream in streams if not stream.complete]
    assert_all_complete([stream for stream in streams if stream.complete], words)
    assert [task.result() for task in resumed] == [traffic.prompt(words)] * 6
    print(f"PROXY {proxy.name}: {lost} of 18 were the killed gateway's; {len(broken)} of our 12 plain ones broke")
    assert 0 < len(broken) <= lost
    assert lost - len(broken) <= 6


@pytest.mark.nightly("long")
async def test_a_renewed_certificate_cuts_no_stream(proxy: Proxy, behind: Site) -> None:
    words = 150 if proxy.name == "traefik" else 80 if proxy.name == "caddy" else 30
    async with streaming(proxy, behind, count=10, words=words) as streams:
        old = await proxy.serial()
        await proxy.renew()

        async def is_new() -> bool:
            return await proxy.serial() != old

        await until(is_new, seconds=70, what="a new connection gets a new certificate", ignoring=(OSError,))
        assert not any(stream.complete or stream.broken for stream in streams)
    assert_all_complete(streams, words)


@pytest.mark.nightly("storms")
async def test_a_thousand_streams_complete_while_a_gateway_ends(proxy: Proxy, behind: Site) -> None:
    count, words = 1000, 50
    async with _more_workers(behind):
        began = time.monotonic()
        async with streaming(proxy, behind, count, words, a_second=60) as streams:
            print(f"PROXY {proxy.name}: {count} streams after {time.monotonic() - began:.1f} s; each gateway runs {await behind.running()}")
            await behind.end_second(signal.SIGTERM)
    assert_all_complete(streams, words)


@asynccontextmanager
async def _more_workers(behind: Site) -> AsyncIterator[None]:
    """Start more workers: one echo worker has 256 slots."""
    settings = {"ECHO_TOKEN_MS": str(int(TOKEN_SECONDS * 1000))}
    names = [f"worker-{number}" for number in range(3)]
    async with (
        replicas.replica(behind.stack, "inference", folder=behind.folder, name=names[0], settings=settings) as first,
        replicas.replica(behind.stack, "inference", folder=behind.folder, name=names[1], settings=settings) as second,
        replicas.replica(behind.stack, "inference", folder=behind.folder, name=names[2], settings=settings) as third,
    ):
        for worker in (first, second, third):
            await worker.ready()
        yield
