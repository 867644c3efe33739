import asyncio
import time

import httpx2
import numpy as np
import pytest

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


def test_slots_stay_on_the_grid_of_the_rate():
    async def take(host, slots):
        start = time.monotonic()
        for _ in range(slots):
            await host.wait_for_slot()
        return time.monotonic() - start

    host = Host('h', rate=400)
    assert 0.245 < asyncio.run(take(host, 101)) < 0.45  # late wake-ups do not add up
    host.pause(0.2)
    assert asyncio.run(take(host, 1)) > 0.19


def test_after_a_rest_no_two_requests_go_at_once():
    async def take():
        host = Host('h', rate=10)
        await host.wait_for_slot()
        await asyncio.sleep(0.35)
        times = []
        for _ in range(3):
            await host.wait_for_slot()
            times.append(time.monotonic())
        return np.diff(times)

    assert (asyncio.run(take()) > 0.08).all()
