"""A node that kills itself with SIGKILL when a stage is reached for the n-th time.

``python -m tests.acceptance.doomed CONFIG [STAGE N]`` says its port on standard output.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path

from node.cli.serve import configure_logging
from node.config import LoggingSection, load
from node.daemon import Node
from node.domain.stage import Stage
from node.site import Watcher


def main(config: Path, stage: str = "", count: str = "1") -> None:
    """Run until killed, from inside or outside; say the port once it is open."""
    configure_logging(LoggingSection())
    times = itertools.count(1)

    def reached(at: Stage, subject: str) -> None:
        if at.value == stage and next(times) == int(count):
            os.kill(os.getpid(), signal.SIGKILL)

    with Node(load(config), Watcher(reached=reached)) as node:
        sys.stdout.write(f"{node.port}\n")
        sys.stdout.flush()
        node.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
