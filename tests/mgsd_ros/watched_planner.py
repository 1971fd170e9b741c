"""The real node, more closely watched: it says when it begins, and often what became of frames.

Run as a process by the node's tests; with PLAN it plans as in `changed_planner`. At SIGUSR1 it
gives back the memory that it no longer uses.
"""

from __future__ import annotations

import ctypes
import os
import signal

from mgsd_ros import planner_node

planner_node._DIAGNOSTICS_PERIOD = 0.01

if __name__ == "__main__":
    if "PLAN" in os.environ:
        import changed_planner  # noqa: F401
    libc = ctypes.CDLL("libc.so.6")
    signal.signal(signal.SIGUSR1, lambda *_: libc.malloc_trim(0))
    print("the node begins", flush=True)
    raise SystemExit(planner_node.main())
