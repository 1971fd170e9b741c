"""The program `planner_node`. It ends on a signal with status 0 from its first line on.

What the node imports takes the larger part of a second; a launch that is stopped meanwhile must
not see a traceback. So this module imports nothing until the signals are seen to.
"""

from __future__ import annotations

import os
import signal


def main() -> int:
    """Run the node; see `mgsd_ros.planner_node.main`, which takes the signals over."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # At once: there is nothing yet to be put in order, and an exception could be caught.
        signal.signal(number, lambda *_: os._exit(0))
    from mgsd_ros.planner_node import main as run

    return run()


if __name__ == "__main__":
    raise SystemExit(main())
