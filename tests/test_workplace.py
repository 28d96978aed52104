"""One worker, one device: a thread has one context at a time."""

from __future__ import annotations

import pytest

from node.domain.errors import RuntimeUnavailable
from node.gpu.workplace import refuse_second


def test_second_device_in_one_process_is_refused_in_words() -> None:
    with pytest.raises(RuntimeUnavailable, match="GPU 0 already.*GPU 1 a worker of its own"):
        refuse_second(1, {0})


def test_networks_share_the_device_that_is_open() -> None:
    refuse_second(0, set())
    refuse_second(0, {0})
