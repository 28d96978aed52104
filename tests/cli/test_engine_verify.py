"""``engine verify``: against the reference network, and against masks that somebody drew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.testing.series import make
from node.verdicts import FOLDER, Records
from tests.acceptance.hospital import SPEC, small_study
from tests.cli.conftest import Said
from tests.cli.shop import Shop, opened

Command = Callable[..., Said]


@pytest.fixture
def shop(tmp_path: Path, ai_node: Command) -> Shop:
    """With the engine ``bright`` on the shelf."""
    shop = opened(tmp_path)
    assert ai_node("engine", "add", shop.network, "--config", shop.config).code == 0
    return shop


def test_verify_keeps_its_verdict_and_list_shows_it(shop: Shop, ai_node: Command) -> None:
    said = ai_node("engine", "verify", "bright", "--config", shop.config)
    assert said.code == 0
    assert "bright: passed" in said.out
    (verdict,) = Records(shop.folder / "state" / FOLDER).all()
    assert verdict.engine == "bright"
    rows = ai_node("engine", "list", "--config", shop.config, "--json").json
    assert {row["name"]: row["verified"] for row in rows}["bright"] == "passed"
    assert "verified   passed" in ai_node("engine", "show", "bright", "--config", shop.config).out


def test_verify_fails_when_the_golden_answer_is_another(shop: Shop, ai_node: Command) -> None:
    golden = shop.added / "golden"
    golden.mkdir()
    image = np.zeros((1, 1, 16, 16), np.float32)
    image[..., 4:12, 4:12] = 5.0
    np.save(golden / "input.npy", image)
    np.save(golden / "expected.npy", np.zeros_like(image))
    said = ai_node("engine", "verify", "bright", "--config", shop.config)
    assert said.code == 1
    assert "FAILED" in said.out
    rows = ai_node("engine", "list", "--config", shop.config, "--json").json
    assert {row["name"]: row["verified"] for row in rows}["bright"] == "failed"


def masks(shop: Shop, shift: int) -> Path:
    """Five studies with a box each, and drawn masks of the box, all but the first one shifted."""
    for number in range(5):
        spec = replace(SPEC, study=f"study {number}")
        shop.study(small_study(spec), f"drawn/case-{number}")
        mask = np.zeros((6, 32, 24), np.uint8)
        moved = shift if number else 0
        mask[2:4, 8 + moved : 20 + moved, 6:14] = 1
        np.save(shop.folder / "drawn" / f"case-{number}.npy", mask)
    return shop.folder / "drawn"


def test_verify_against_masks_gives_dice_with_an_interval(shop: Shop, ai_node: Command) -> None:
    shop.correct(post__value=0.5)
    drawn = masks(shop, shift=6)
    said = ai_node(
        "engine", "verify", "bright", "--against", drawn, "--config", shop.config, "--json"
    ).json
    values = sorted(study["dice"]["Finding 1"] for study in said["studies"])
    assert values == pytest.approx([0.5, 0.5, 0.5, 0.5, 1.0])
    (finding,) = said["findings"]
    assert finding["mean"] == pytest.approx(0.6)
    low, high = finding["interval"]
    assert 0.5 <= low < 0.6 < high <= 0.9
    shown = ai_node("engine", "verify", "bright", "--against", drawn, "--config", shop.config).out
    assert "0.600" in shown


def two_boxes() -> list[Dataset]:
    """A study with two bright boxes, which are two findings of one name."""
    voxels = np.full((6, 32, 24), 100, np.uint16)
    voxels[2:4, 4:12, 6:14] = 900
    voxels[2:4, 18:30, 6:14] = 900
    return make(SPEC, voxels)


def test_verify_against_a_seg_of_its_own_is_a_full_match(shop: Shop, ai_node: Command) -> None:
    study, out = shop.study(two_boxes()), shop.folder / "out"
    ai_node("engine", "try", "bright", study, "--out", out, "--config", shop.config)
    assert len(dcmread(out / "seg.dcm").SegmentSequence) == 2
    said = ai_node(
        "engine", "verify", "bright", "--against", out, "--studies", study,
        "--config", shop.config, "--json",
    ).json  # fmt: skip
    assert said["findings"][0]["mean"] == 1.0
    assert said["findings"][0]["interval"] is None


def test_verify_refuses_masks_that_do_not_lie_on_the_images(shop: Shop, ai_node: Command) -> None:
    study = shop.study()
    np.save(study / "mask.npy", np.zeros((5, 32, 24), np.uint8))
    said = ai_node(
        "engine", "verify", "bright", "--against", study, "--config", shop.config, "--json"
    )
    assert said.code == 1
    assert "has shape (5, 32, 24), the images (6, 32, 24)" in said.json["studies"][0]["left_out"]


def test_verify_says_what_has_no_mask(shop: Shop, ai_node: Command) -> None:
    said = ai_node("engine", "verify", "bright", "--against", shop.study(), "--config", shop.config)
    assert said.code == 1
    assert "left out" in said.out
