"""Counters in the text format of Prometheus."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable

BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)  # seconds


class Metrics:
    """Requests by route and status, and how long they took."""

    def __init__(self, routes: Iterable[str]):
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets = {route: [0] * (len(BOUNDS) + 1) for route in (*routes, "other")}
        self._seconds = dict.fromkeys(self._buckets, 0.0)

    def observe(self, path: str, status: int, seconds: float) -> None:
        route = path if path in self._buckets else "other"
        self._requests[route, status] += 1
        self._buckets[route][bisect.bisect_left(BOUNDS, seconds)] += 1
        self._seconds[route] += seconds

    def text(self, events: dict[str, int], items: int, loaded: float) -> str:
        """The page. events: counts by kind. loaded: seconds since 1970, of the model."""
        lines = ["# TYPE kd_jax_requests_total counter"]
        for (route, status), count in sorted(self._requests.items()):
            lines.append(f'kd_jax_requests_total{{route="{route}",status="{status}"}} {count}')
        lines.append("# TYPE kd_jax_request_seconds histogram")
        for route, buckets in self._buckets.items():
            name, label = "kd_jax_request_seconds", f'route="{route}"'
            total = 0
            for bound, count in zip((*map(str, BOUNDS), "+Inf"), buckets, strict=True):
                total += count
                lines.append(f'{name}_bucket{{{label},le="{bound}"}} {total}')
            lines.append(f"{name}_sum{{{label}}} {self._seconds[route]:.6f}")
            lines.append(f"{name}_count{{{label}}} {total}")
        lines.append("# TYPE kd_jax_events_total counter")
        lines += [f'kd_jax_events_total{{event="{name}"}} {n}' for name, n in events.items()]
        lines += ["# TYPE kd_jax_items gauge", f"kd_jax_items {items}"]
        lines += ["# TYPE kd_jax_model_loaded_seconds gauge"]
        lines += [f"kd_jax_model_loaded_seconds {loaded:.3f}"]
        return "\n".join(lines) + "\n"
