"""What the cache did: counters as a dict, as a table and as Prometheus text."""

from __future__ import annotations

import threading
from collections import defaultdict

_PREFIX = "flmm_cache_"
# name -> (type, label, what it counts)
_METRICS = {
    "requests": ("counter", "level", "Requests by what served them: L2, L1, L3 or miss"),
    "saved_ms": ("counter", "level", "Milliseconds saved, as measured when the values were stored"),
    "match_ms": ("counter", "", "Milliseconds spent on matching"),
    "inserts": ("counter", "level", "Stored values"),
    "refused": ("counter", "reason", "Insertions that were not done"),
    "evicted": ("counter", "tier", "Values evicted"),
    "dropped": ("counter", "reason", "Stored values found unusable"),
    "errors": ("counter", "tier", "Failures of a tier that requests did not notice"),
    "flights": ("counter", "role", "Computations led, and computations waited for"),
    "shadow": ("counter", "result", "Approximate answers compared with full ones"),
    "bytes": ("gauge", "tier", "Bytes stored"),
    "values": ("gauge", "tier", "Values stored"),
    "backgrounds": ("gauge", "", "Backgrounds known"),
    "in_flight": ("gauge", "tier", "Values that requests use at the moment"),
    "approximate_enabled": ("gauge", "", "1 while level L3 is on"),
    "approximate_error_bound": ("gauge", "", "Upper Clopper-Pearson bound of L3's disagreement"),
}


class CacheStats:
    """Counters by metric and label. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, defaultdict[str, float]] = {name: defaultdict(int) for name in _METRICS}

    def add(self, metric: str, label: str = "", amount: float = 1) -> None:
        """Counts up."""
        with self._lock:
            self._values[metric][label] += amount

    def set(self, metric: str, label: str, value: float) -> None:
        """Sets a gauge."""
        with self._lock:
            self._values[metric][label] = value

    def as_dict(self) -> dict[str, float | dict[str, float]]:
        """Numbers by metric; those with a label as a dict."""
        with self._lock:
            return {
                name: dict(self._values[name]) if label else self._values[name][""]
                for name, (_, label, _) in _METRICS.items()
            }

    def table(self) -> str:
        """Markdown table: metric, label, value; a last line with the hit rate."""
        figures = self.as_dict()
        requests = figures["requests"]
        assert isinstance(requests, dict)
        total = sum(requests.values())
        lines = ["| metric | label | value |", "|---|---|---|"]
        for name in _METRICS:
            figure = figures[name]
            found = figure if isinstance(figure, dict) else {"": figure}
            lines += [f"| {name} | {key} | {_number(value)} |" for key, value in sorted(found.items())]
        if total:
            lines.append(f"| hit rate | all levels | {1 - requests.get('miss', 0) / total:.3f} |")
        return "\n".join(lines)

    def prometheus(self) -> str:
        """Text in the Prometheus exposition format 0.0.4."""
        figures = self.as_dict()
        lines: list[str] = []
        for name, (kind, label, text) in _METRICS.items():
            full = f"{_PREFIX}{name}" + ("_total" if kind == "counter" else "")
            lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}"]
            found = figures[name]
            if isinstance(found, dict):
                lines += [
                    f'{full}{{{label}="{key}"}} {_exact(value)}' for key, value in sorted(found.items())
                ]
            else:
                lines.append(f"{full} {_exact(found)}")
        return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"


def _exact(value: float) -> str:
    """Counters are not rounded: their rate would stand still, then jump."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))
