"""The loads of `make bench-load` in short: what they hold but for times, which decide no test."""

from __future__ import annotations

import pytest
from benchmarks.load_cancel import cancel
from benchmarks.load_overload import overload
from benchmarks.load_soak import soak

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


def test_past_what_can_be_sustained_all_are_answered_or_told_to_come_again() -> None:
    found = overload(6)
    assert set(found["overload_statuses"]) == {200, 429}
    assert found["refused_without_retry_after"] == 0
    assert found["patient_calls"] > 0
    assert found["resident_mb"] < 1000


def test_callers_who_hang_up_leave_nothing_behind() -> None:
    found = cancel(100)
    assert found["left_in_the_queue"] == found["left_running"] == found["held_bytes"] == 0
    assert found["serves_on"]
    # Each of the calls has brought a body of 50 MB.
    assert found["growth_mb"] < 100


def test_a_minute_of_all_that_may_come() -> None:
    found = soak(60)
    assert found["wrong"] == []
    assert found["left"] == 0
    assert found["requests"] > 500
    kinds = {name.split()[0] for name in found["seen"]}
    assert kinds == {"dropped", "impatient", "invalid", "oversized", "slow", "text", "valid"}
    assert found["seen"].get("valid 200", 0) > 100
    assert found["seen"].get("text 200", 0) > 0
    assert found["resident_mb"]["last"] < 1000
