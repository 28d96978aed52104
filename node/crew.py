"""Loops in their threads: started together, watched, stopped in order."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from node.loop import Loop


class Crew:
    """The loops of one part of the node. What ends one loop ends the crew."""

    def __init__(self, loops: Mapping[str, Loop]) -> None:
        """``loops`` by name."""
        self.loops = dict(loops)
        self._threads = ThreadPoolExecutor(max(1, len(loops)), thread_name_prefix="node")
        self.running: dict[str, Future[None]] = {}

    def start(self) -> None:
        """Run every loop in a thread of its own."""
        for name, loop in self.loops.items():
            self.running[name] = self._threads.submit(loop.run)

    def wake(self) -> None:
        """There may be work for any of them."""
        for loop in self.loops.values():
            loop.wake()

    def stop(self) -> None:
        """Let each loop finish its step."""
        for loop in self.loops.values():
            loop.stop()
        self._threads.shutdown()

    def turning(self, longest_s: float) -> bool:
        """Whether every loop runs and has begun a turn within ``longest_s`` seconds."""
        return all(not future.done() for future in self.running.values()) and all(
            loop.stopwatch() - loop.beat < longest_s for loop in self.loops.values()
        )


def wait_for_end(crews: tuple[Crew, ...], timeout_s: float | None) -> bool:
    """Wait until a loop of any crew has ended. True if one has; raises what ended it."""
    futures = [future for crew in crews for future in crew.running.values()]
    ended, _ = wait(futures, timeout_s, return_when=FIRST_COMPLETED)
    for future in ended:
        future.result()
    return bool(ended)
