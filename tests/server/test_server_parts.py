"""Keys, origins, rates and counts: the parts of the server that need no socket."""

import pytest

from pipecat_duplex.server.access import has_key, is_allowed_origin
from pipecat_duplex.server.limit import RateLimit
from pipecat_duplex.server.metrics import Histogram, Metrics
from pipecat_duplex.session import StepTiming

KEYS = ("first", "sécond")


@pytest.mark.parametrize(
    ("headers", "query", "expected"),
    [
        ({}, {}, False),
        ({"Authorization": "Bearer first"}, {}, True),
        ({"Authorization": "bearer  first "}, {}, True),
        ({"Authorization": "Basic first"}, {}, False),
        ({"Authorization": "Bearer first2"}, {}, False),
        ({"Authorization": "Bearer "}, {}, False),
        ({"Authorization": "first"}, {}, False),
        ({"kyutai-api-key": "first"}, {}, True),
        ({}, {"api_key": "sécond"}, True),
        ({}, {"worker_auth_id": "first"}, True),
        ({}, {"api_key": ""}, False),
        ({}, {"api_key": "\udcff"}, False),
    ],
)
def test_keys(headers, query, expected):
    assert has_key(headers, query, KEYS) is expected
    assert has_key(headers, query, ()) is True


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, True),
        ("http://here:8998", True),
        ("HTTP://Here:8998", True),
        ("https://bot.example", True),
        ("https://bot.example/", True),
        ("https://evil.example", False),
        ("http://here", False),
        ("null", False),
        ("http://[", False),
        ("", False),
    ],
)
def test_origins(origin, expected):
    assert is_allowed_origin(origin, "here:8998", ("https://bot.example",)) is expected
    assert is_allowed_origin(origin, "here:8998", ("*",)) is True


def test_a_rate_lets_bursts_through_and_no_more():
    limit = RateLimit(per_sec=10, burst=5)
    assert all(limit.take(1, 100.0) for _ in range(5))
    assert not limit.take(1, 100.0)
    assert limit.room(100.2) == pytest.approx(1)
    assert limit.room(200.0) == 5
    assert limit.take(5, 200.0)
    assert limit.take(0, 199.0)  # a clock that steps back fills nothing


def test_histogram_counts_upwards():
    histogram = Histogram((0.1, 1))
    for secs in (0.05, 0.1, 0.5, 3):
        histogram.add(secs)
    assert list(histogram.lines("x")) == [
        'x_bucket{le="0.1"} 2',
        'x_bucket{le="1"} 3',
        'x_bucket{le="+Inf"} 4',
        "x_sum 3.650000",
        "x_count 4",
    ]


def test_late_steps_are_counted():
    metrics = Metrics()
    assert metrics.add_step(StepTiming(0.01, 0.02)) == pytest.approx(0.03)
    metrics.add_step(StepTiming(0.07, 0.02))
    text = metrics.render(slots=4, used=1, lag_secs=0.01, draining=False)
    assert "pipecat_duplex_late_steps_total 1\n" in text
    assert "pipecat_duplex_steps_total 2\n" in text
