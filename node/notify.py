"""What the service manager is told, by hand: readiness, progress, the watchdog, the end.

The protocol is one datagram of ``KEY=value`` lines to the socket that ``NOTIFY_SOCKET`` names
(sd_notify(3)). Outside of systemd there is no such socket, and nothing is told.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServiceManager:
    """The service manager at a socket address; "" is none.

    An address that begins with ``@`` is in the abstract namespace of Linux.
    """

    address: str = ""

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> ServiceManager:
        """The service manager that started this process, if one did."""
        return cls(environment.get("NOTIFY_SOCKET", ""))

    def ready(self, status: str = "") -> None:
        """The node accepts associations."""
        self._tell("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._tell(f"STATUS={text}")

    def alive(self) -> None:
        """Feed the watchdog. Call it where progress was proven, never from a bare timer."""
        self._tell("WATCHDOG=1")

    def reloading(self) -> None:
        """The configuration is being read anew; ``ready`` must follow."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The node is on its way down."""
        self._tell("STOPPING=1")

    def _tell(self, *lines: str) -> None:
        if not self.address:
            return
        # A line break would start another assignment.
        message = "\n".join(line.replace("\n", " ") for line in lines if line != "STATUS=")
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            try:
                out.connect(address)
                out.sendall(message.encode())
            except OSError:
                # A manager that went away is no reason to stop receiving.
                return


def watchdog_interval_s(
    environment: Mapping[str, str] = os.environ, process: int | None = None
) -> float | None:
    """Seconds within which the watchdog must be fed; None when nobody watches this process.

    Feed it twice as often. ``process`` is the id that asks, by default our own.
    """
    watched = environment.get("WATCHDOG_PID", "")
    interval = environment.get("WATCHDOG_USEC", "")
    if watched and watched != str(os.getpid() if process is None else process):
        return None
    return int(interval) / 1e6 if interval.isdecimal() and int(interval) else None
