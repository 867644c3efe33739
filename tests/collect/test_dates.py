import pytest

from pera_mm.collect.fetch.dates import join_dates, parse_date, safe_dates


@pytest.mark.parametrize('date', ['2020', '2020-05-17', '5/17/2020-6/2/2020',
                                  'Sun, 17 May 2020 10:00:00 GMT', '2020-05-17T10:00:00.5+02:00'])
def test_what_servers_send_as_dates(date):
    assert parse_date(f' {date} ') == date and safe_dates(date) == date
    assert join_dates([date, '', date]) == date


@pytest.mark.parametrize('text', ['', '=1', '-', '+1', '@a', '2020\n=1', 'a' * 65, 'ü', 'a|b'])
def test_what_is_not_a_date(text):
    assert parse_date(text) == ''


def test_old_dates():
    assert safe_dates('spring 2021 – Nord (é)') == 'spring 2021 – Nord (é)'  # a user's own
    for value in ('=1', '-1', '@x', '2020\t=1', '9' * 257, None, 5, ['=1']):
        assert safe_dates(value) == ''
    assert len(join_dates([f'{index:064d}' for index in range(99)])) == 3 * 64 + 2
