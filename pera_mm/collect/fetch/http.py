"""Requests to tile servers: their rate, and what a response means."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import httpx2

from pera_mm.collect.common.tables import log
from pera_mm.collect.fetch.sources import NotAvailable

OK = 200
BUSY_STATUSES = (429, 503)  # Too Many Requests, Service Unavailable
TEMPORARY_STATUSES = (408, 429)  # besides 5xx
SERVER_ERRORS = 500  # and above
LEAST_PAUSE_LOGGED = 1.0  # s


class RequestPolicy(NamedTuple):
    """Limits for the requests to servers.

    Attributes:
        concurrency: Requests at a time.
        retries: Further attempts for a tile after the first.
        timeout: Seconds for a whole response.
        backoff: Seconds before the first retry.
    """

    concurrency: int
    retries: int
    timeout: float
    backoff: float


class Failed(Exception):
    """A request that brought no tile this time; the text is the reason.

    Attributes:
        may_retry: Whether a further attempt may help.
        pause: Seconds for which the host asks for no requests; 0: it does not say how long;
            None: it does not ask.
        status: The HTTP status, if it is the reason.
    """

    def __init__(self, reason: str, may_retry: bool = True, pause: float | None = None,
                 status: int | None = None) -> None:
        super().__init__(reason)
        self.may_retry = may_retry
        self.pause = pause
        self.status = status


class Response(NamedTuple):
    """The response of a server, its body unpacked."""

    status: int
    headers: httpx2.Headers
    body: bytes


class Host:
    """The state of one host: its next free slot, and its recent failures.

    Args:
        name: Host and port.
        rate: Requests per second.

    Attributes:
        failures: Consecutive responses without a tile.
    """

    def __init__(self, name: str, rate: float) -> None:
        self.name = name
        self.interval = 1 / rate  # s
        self.free_at = 0.0  # of time.monotonic()
        self.queue = asyncio.Lock()
        self.failures = 0

    async def wait_for_slot(self) -> None:
        """Wait until the next request may be sent; first come, first served."""
        async with self.queue:
            # Slots keep to the grid of the rate, so that late wake-ups do not add up. After a rest
            # a new grid begins.
            self.free_at = max(self.free_at, time.monotonic())
            while (wait := self.free_at - time.monotonic()) > 0:  # a pause may lengthen it
                await asyncio.sleep(wait)
            self.free_at += self.interval

    def pause(self, seconds: float) -> None:
        """Send no request for this time."""
        until = time.monotonic() + seconds
        if until > self.free_at + LEAST_PAUSE_LOGGED:
            log.warning('fetch: no requests to %s for %.0f s, as it asks', self.name, seconds)
        self.free_at = max(self.free_at, until)


@asynccontextmanager
async def silent_client(headers: Mapping[str, str],
                        connections: int) -> AsyncIterator[httpx2.AsyncClient]:
    """Open an HTTP client that does not log: it would log every URL, and with it the key.

    Args:
        headers: Sent with every request.
        connections: Open at a time.
    """
    limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
    loggers = [logging.getLogger(name) for name in ('httpx2', 'httpcore2')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        async with httpx2.AsyncClient(headers=headers, limits=limits, timeout=None) as client:
            yield client
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


async def get(client: httpx2.AsyncClient, url: str, timeout: float, max_bytes: int) -> Response:
    """Send a request and receive the response.

    Args:
        client: As :func:`silent_client` gives it.
        url: The address.
        timeout: Seconds for the whole response.
        max_bytes: Of a longer body only the beginning is received, a little more than this.

    Raises:
        Failed: if there is no response, or not in time.
    """
    try:
        return await asyncio.wait_for(_receive(client, url, max_bytes), timeout)
    except asyncio.TimeoutError:
        raise Failed('no answer in time') from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise Failed(f'no answer: {_kind_of(error)}') from None


async def _receive(client: httpx2.AsyncClient, url: str, max_bytes: int) -> Response:
    body = bytearray()
    async with client.stream('GET', url) as response:
        async with aclosing(response.aiter_bytes()) as parts:
            async for part in parts:
                body += part
                if len(body) > max_bytes:
                    break
    return Response(response.status_code, response.headers, bytes(body))


def _kind_of(error: BaseException) -> str:
    """The class of an error, and of its first cause.

    The texts are left out: they may contain the URL or a header, and with them the key.
    """
    cause = error
    while deeper := cause.__cause__ or cause.__context__:
        cause = deeper
    kinds = [type(each).__name__ for each in (error, cause)]
    return kinds[0] if kinds[0] == kinds[1] else f'{kinds[0]} ({kinds[1]})'


def check_status(response: Response, no_tile: Sequence[int]) -> None:
    """Check that a response has the status 200.

    Args:
        response: Of a server.
        no_tile: Statuses which say that the tile does not exist.

    Raises:
        NotAvailable: if the status is in ``no_tile``.
        Failed: for every other status.
    """
    status = response.status
    if status == OK:
        return
    pause = retry_after(response.headers)
    if status in no_tile and pause is None:  # with Retry-After the refusal is not final
        raise NotAvailable(f'HTTP {status}')
    if pause is None and status in BUSY_STATUSES:
        pause = 0.0  # it does not say how long: as long as this request waits
    may_retry = status in TEMPORARY_STATUSES or status >= SERVER_ERRORS
    raise Failed(f'HTTP {status}', may_retry, pause, status)


def retry_after(headers: httpx2.Headers) -> float | None:
    """Read the seconds of ``Retry-After``, which is a number or a date.

    Returns:
        None if the header is missing or malformed.
    """
    text = headers.get('Retry-After', '').strip()
    if re.fullmatch(r'\d+(\.\d*)?', text, re.ASCII):
        return float(text)
    try:
        until = parsedate_to_datetime(text)
        # The server's clock is used if it is known: ours may differ.
        now = parsedate_to_datetime(headers['Date']) if 'Date' in headers else datetime.now(
            timezone.utc)
        return max((until - now).total_seconds(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None
