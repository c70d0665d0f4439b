"""`/metrics`: the daemon's numbers in Prometheus' text form, names after its naming guide.

Counters begin at zero with each start of the daemon, as that format expects; the durable counts are in `/v1/windows`.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

import psutil
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from lenskeep.clock import Clock
from lenskeep.daemon.metrics import Metrics
from lenskeep.daemon.supervisor import Supervisor
from lenskeep.messages.runner import STAGES, Beat
from lenskeep.registry.blobs import Blobs
from lenskeep.sketch import Sketch

EDGES_S = (0.001, 0.002, 0.004, 0.006, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1.0)


class Exposition:
    """Collects afresh at every scrape."""

    def __init__(self, metrics: Metrics, supervisor: Supervisor, blobs: Blobs, clock: Clock) -> None:
        self._metrics = metrics
        self._supervisor = supervisor
        self._blobs = blobs
        self._clock = clock
        self._process = psutil.Process()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def prometheus(self) -> bytes:
        """Return the page. Cost: a few milliseconds."""
        return bytes(generate_latest(self._registry))

    def collect(self) -> Iterator[Metric]:
        """Yield every family; called by the library."""
        yield from self._device()
        yield from self._slots()
        yield from self._results()

    def _device(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("lenskeep_build_info", "Version of Lenskeep.", labels=["version"])
        info.add_metric([version("lenskeep")], 1)
        yield info
        yield GaugeMetricFamily(
            "lenskeep_disk_free_bytes", "What imports may still use.", value=self._blobs.free_bytes()
        )
        yield GaugeMetricFamily(
            "lenskeep_clock_trusted", "1 when the clock can be right.", value=int(self._clock.trusted())
        )
        rss = self._process.memory_info().rss
        yield GaugeMetricFamily("lenskeep_daemon_resident_bytes", "Memory of the control plane.", value=rss)

    def _slots(self) -> Iterator[Metric]:
        model = GaugeMetricFamily(
            "lenskeep_model_info",
            "The version whose session is loaded.",
            labels=["slot", "bundle", "digest", "provider"],
        )
        memory = GaugeMetricFamily("lenskeep_runner_resident_bytes", "Memory of a slot's process.", labels=["slot"])
        frames = CounterMetricFamily("lenskeep_frames", "Frames that came.", labels=["slot", "camera"])
        drops = CounterMetricFamily(
            "lenskeep_frames_dropped", "Frames not judged.", labels=["slot", "camera", "reason"]
        )
        age = GaugeMetricFamily("lenskeep_frame_age_seconds", "Age of the newest frame.", labels=["slot", "camera"])
        lost = CounterMetricFamily("lenskeep_results_lost", "Results that a ring had to forget.", labels=["slot"])
        for slot, beat in self._beats():
            lost.add_metric([slot], self._metrics.lost(slot))
            model.add_metric([slot, beat.active, beat.digest, beat.provider], 1)
            memory.add_metric([slot], beat.rss_mb * (1 << 20))
            for camera in beat.cameras:
                frames.add_metric([slot, camera.name], camera.frames)
                age.add_metric([slot, camera.name], camera.frame_age_s)
                for reason, count in camera.drops.items():
                    drops.add_metric([slot, camera.name, reason], count)
        yield from (model, memory, frames, drops, age, lost)

    def _beats(self) -> Iterator[tuple[str, Beat]]:
        for slot, process in self._supervisor.processes.items():
            if process.beat is not None:
                yield slot, process.beat

    def _results(self) -> Iterator[Metric]:
        results = CounterMetricFamily("lenskeep_results", "Judged frames.", labels=["slot", "bundle", "outcome"])
        misses = CounterMetricFamily("lenskeep_deadline_misses", "Frames over the budget.", labels=["slot", "bundle"])
        stages = HistogramMetricFamily(
            "lenskeep_stage_duration_seconds", "Durations by stage.", labels=["slot", "bundle", "stage"]
        )
        for (slot, bundle), span in self._metrics.totals().items():
            misses.add_metric([slot, bundle], span.misses)
            for outcome, count in span.outcomes.items():
                results.add_metric([slot, bundle, outcome], count)
            for stage in STAGES:
                sketch = span.sketches[stage]
                stages.add_metric([slot, bundle, stage], _buckets(sketch), sum_value=sketch.sum_us / 1e6)
        yield from (results, misses, stages)


def _buckets(sketch: Sketch) -> list[tuple[str, float]]:
    edges = [(str(edge), float(sketch.total - sketch.over(edge * 1e6))) for edge in EDGES_S]
    return [*edges, ("+Inf", float(sketch.total))]
