"""Which moments of a LUN's curve are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tcmu_retry.daemon.api import DeviceStatus, Sample
from tcmu_retry.daemon.recorder import Curve
from tests.statuses import DOWN, ONLINE, WELL


def status(down: bool = False, held: int = 0, probes: int = 0) -> DeviceStatus:
    write = replace(DOWN, probes=probes) if down else replace(ONLINE, probes=probes)
    return replace(WELL, write=write, held=held, oldest_held=2.5)


def counters(moment: int) -> dict[str, int]:
    return {"read_bytes": 0, "written_bytes": 1000 * moment, "errors": moment}


def play(curve: Curve, seconds: range, **shown: int) -> list[Sample]:
    return [
        sample
        for now in seconds
        for sample in curve.look(status(**shown), counters(now), float(now))  # type: ignore[arg-type]
    ]


def test_an_outage_is_kept_from_a_minute_before_to_a_minute_after() -> None:
    """t=0..199 well, 200..259 down, 260..399 well: kept is 140..259 + 60, one stretch."""
    curve = Curve()
    assert play(curve, range(200)) == []
    kept = play(curve, range(200, 260), down=True, held=3)
    kept += play(curve, range(260, 400))
    assert [sample.time for sample in kept] == list(range(140, 320))
    assert {sample.stretch for sample in kept} == {140.0}
    assert {sample.write_rate for sample in kept} == {1000.0}
    assert {(sample.held, sample.write_state) for sample in kept if 200 <= sample.time < 260} == {(3, "down")}
    assert play(curve, range(400, 500)) == []
    assert {sample.stretch for sample in play(curve, range(500, 510), down=True)} == {440.0}


def test_an_old_outage_is_sampled_less_often_and_nothing_is_lost_between() -> None:
    """A day of it is some thousand samples; rates and probes are since the sample before."""
    curve = Curve()
    kept = [
        sample
        for now in range(86_400)
        for sample in curve.look(status(True, 1, probes=now // 30), counters(now), float(now))
    ]
    assert 1000 < len(kept) < 3000
    assert kept[-1].time > 86_400 - 310
    assert sum(sample.probes for sample in kept) == kept[-1].time // 30
    assert {round(sample.write_rate) for sample in kept} == {1000}


@pytest.mark.parametrize("jump", [-86_400, 86_400])
def test_a_clock_that_jumps_costs_no_more_than_a_sample(jump: int) -> None:
    """60 s into an outage the host's clock is set by a day: the next samples are kept, under the new time."""
    curve = Curve()
    base = 1_000_000
    play(curve, range(base, base + 60), down=True, held=1)
    kept = play(curve, range(base + jump, base + jump + 60), down=True, held=1)
    assert [sample.time for sample in kept] == list(range(base + jump + 1, base + jump + 60))
    assert all(sample.write_rate >= 0 for sample in kept)
    over = play(curve, range(base + jump + 60, base + jump + 300))
    assert over[-1].time <= base + jump + 120
    assert play(curve, range(base + jump + 300, base + jump + 310)) == []


def test_probes_of_a_new_outage_are_counted_from_its_own_beginning() -> None:
    curve = Curve()
    curve.look(status(True, 1, 0), counters(0), 0.0)
    [first] = curve.look(status(True, 1, 7), counters(1), 1.0)
    [second] = curve.look(status(True, 1, 2), counters(2), 2.0)
    assert (first.probes, second.probes) == (7, 2)
