from __future__ import annotations

from mgsd_ros.frame_statistics import TROUBLE_LASTS, FrameStatistics, Level


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_health_goes_from_silence_to_planning_to_trouble_and_back():
    clock = Clock()
    statistics = FrameStatistics(clock)
    assert statistics.health(2.0) == (Level.OK, "waiting for the first plan")
    clock.now += 3
    assert statistics.health(2.0) == (Level.ERROR, "no frame since it became active 3.0 s ago")
    statistics.received()
    statistics.planned(0.02, 0.03)
    assert statistics.health(2.0) == (Level.OK, "planning")
    statistics.trouble("stale", Level.WARN, "too old")
    assert statistics.health(2.0) == (Level.WARN, "too old")
    statistics.trouble("failed", Level.ERROR, "on fire")
    assert statistics.health(2.0) == (Level.ERROR, "on fire")
    clock.now += TROUBLE_LASTS + 0.1
    assert statistics.health(10.0) == (Level.OK, "planning")
    assert statistics.health(2.0)[1] == f"no frame for {TROUBLE_LASTS + 0.1:.1f} s"
    assert statistics.counts["stale"] == statistics.counts["failed"] == 1


def test_values_are_rates_and_percentiles():
    clock = Clock()
    statistics = FrameStatistics(clock)
    assert statistics.values()["plan latency p50 [ms]"] == ""
    for i in range(100):
        clock.now += 0.05
        statistics.received()
        if i % 2:
            statistics.planned(0.001 * (i + 1), 0.5)
    values = statistics.values()
    assert values["frames received"] == "100" and values["frames planned"] == "50"
    assert abs(float(values["frame rate [Hz]"]) - 20) < 0.5
    assert abs(float(values["plan rate [Hz]"]) - 10) < 0.5
    assert abs(float(values["plan latency p50 [ms]"]) - 51) < 2
    assert values["frame age at publication p99 [ms]"] == "500.0"
    assert values["last error"] == ""
