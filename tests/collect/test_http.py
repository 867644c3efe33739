import asyncio
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest

from pera_mm.collect.fetch import http
from pera_mm.collect.fetch.http import Host, retry_after


@pytest.mark.parametrize('text, seconds', [
    ('7', 7), ('1.5', 1.5), ('0', 0), ('', None), ('-1', None), ('nan', None), ('1e3', None),
    ('\xb2', None), ('soon', None), ('Thu, 01 Jan 2026 00:00:00 GMT', 0),
    ('Thu, 01 Jan 2026 00:00:00 +9999999999999', None), ('Thu, 01 Jan 99999 00:00:00 GMT', None),
    ('Wed, 31 Dec 2025 23:00:09 -0100', 9),
])
def test_what_retry_after_may_say(text, seconds):
    headers = httpx2.Headers({'Retry-After': text.encode('latin-1'),
                              'Date': 'Thu, 01 Jan 2026 00:00:00 GMT'})
    assert retry_after(headers) == seconds


class Clock:
    """A clock that only sleeping moves, and every sleep ends 1 ms late."""

    late = 0.001

    def __init__(self) -> None:
        self.now = 1000.

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds + self.late


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(http, 'time', clock)
    monkeypatch.setattr(http, 'asyncio', SimpleNamespace(Lock=asyncio.Lock, sleep=clock.sleep))
    return clock


def slot_times(clock: Clock, host: Host, slots: int) -> np.ndarray:
    """Take slots one after another: the seconds at which each was free."""

    async def take() -> list[float]:
        times = []
        for _ in range(slots):
            await host.wait_for_slot()
            times.append(clock.now)
        return times

    return np.array(asyncio.run(take()))


def test_slots_stay_on_the_grid_of_the_rate(clock):
    host = Host('h', rate=400)
    times = slot_times(clock, host, 101)
    # late wake-ups do not add up
    assert times[-1] - times[0] == pytest.approx(100 / 400 + Clock.late)
    host.pause(0.2)
    paused = clock.now
    assert slot_times(clock, host, 1)[0] - paused == pytest.approx(0.2 + Clock.late)


def test_after_a_rest_no_two_requests_go_at_once(clock):
    host = Host('h', rate=10)
    slot_times(clock, host, 1)
    clock.now += 0.35
    assert np.diff(slot_times(clock, host, 3)) == pytest.approx([0.1 + Clock.late, 0.1])
