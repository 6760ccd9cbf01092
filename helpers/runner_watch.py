"""Caretaker: the highest memory of a run, its worker processes included."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import weakref

INTERVAL_S = 0.25


def own_peak_mb() -> float:
    """Return the highest resident memory of this process so far, in MB (10^6 bytes)."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii") as status:
        peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        return peak_kib * 1024 / 1e6  # getrusage also counts what the parent held before this program began
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


class Watch:
    """Samples the resident memory of this process and its children until it is dropped.

    The system keeps the peak of one process exactly; the sum over a family has to be sampled, so a peak shorter
    than :data:`INTERVAL_S` can be missed there. Pages that processes share are counted in each.
    """

    def __init__(self):
        self.family_mb = 0.0
        threading.Thread(target=_sample, args=(weakref.ref(self),), daemon=True).start()

    @property
    def peak_mb(self) -> float:
        """The highest value so far, in MB (10^6 bytes)."""
        return max(own_peak_mb(), self.family_mb)


def _sample(watch: weakref.ref) -> None:
    import psutil

    me = psutil.Process()
    while True:
        total = 0
        with contextlib.suppress(psutil.Error):
            for process in (me, *me.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += process.memory_info().rss
        alive = watch()
        if alive is None:
            return
        alive.family_mb = max(alive.family_mb, total / 1e6)
        del alive
        time.sleep(INTERVAL_S)
