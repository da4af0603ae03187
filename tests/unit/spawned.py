"""`spawn` in a process of its own, for it takes the signals of the process that calls it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

SPAWN = """
import sys
from pipeline.pretrain.engine.processes import spawn
sys.exit(spawn(sys.argv[3:], int(sys.argv[1]), float(sys.argv[2])))
"""


def started(processes: int, arguments: Sequence[str], grace_s: float = 0.3) -> subprocess.Popen:
    """Ranks that run Python with these arguments."""
    return subprocess.Popen([sys.executable, "-c", SPAWN, str(processes), str(grace_s), sys.executable, *arguments])
