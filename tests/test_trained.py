"""Networks of MONAI bundles and of nnU-Net folders are built by their own code, and filled."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from node.domain.errors import ImportRefused
from node.trained import Asked, bundled, folded, is_bundle, is_torchscript
from tests.trained_models import NETWORK, folds, monai_bundle, needs


def refused(source: Path, asked: Asked | None = None) -> str:
    read = bundled if is_bundle(source) else lambda *given: list(folded(*given))
    with pytest.raises(ImportRefused) as raised:
        read(source, asked or Asked())
    return str(raised.value)


def changed(bundle: Path, name: str, **values: Any) -> Path:
    """A bundle whose configuration has other values; None takes one out."""
    path = bundle / "configs" / name
    table = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: one for key, one in table.items() if one is not None}))
    return bundle


def test_bundle_says_channels_and_patch_itself(tmp_path: Path) -> None:
    learned = bundled(monai_bundle(tmp_path / "bundle"), Asked())
    assert learned.block == (1, 16, 16, 16)
    assert learned.notes == ("weights of models/model.pt",)


def test_person_s_word_counts_more_than_the_bundle_s(tmp_path: Path) -> None:
    learned = bundled(monai_bundle(tmp_path / "bundle"), Asked((8, 8, 8), 3))
    assert learned.block == (3, 8, 8, 8)


def test_bundle_without_a_patch_asks_for_it(tmp_path: Path) -> None:
    bundle = changed(monai_bundle(tmp_path / "bundle"), "inference.json", inferer=None)
    assert "--patch 96,96,96" in refused(bundle)
    formats = {"inputs": {"image": {"num_channels": 1, "spatial_shape": [32, 32, 16]}}}
    changed(bundle, "metadata.json", network_data_format=formats)
    assert bundled(bundle, Asked()).block == (1, 32, 32, 16)


def test_bundle_without_channels_asks_for_them(tmp_path: Path) -> None:
    bundle = monai_bundle(tmp_path / "bundle")
    assert "--channels N" in refused(changed(bundle, "metadata.json", network_data_format=None))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    words = refused(monai_bundle(tmp_path / "bundle", {**NETWORK, "channels": [4, 16]}))
    assert "the weights of model.pt do not fit UNet: " in words


def test_network_that_monai_cannot_build_is_refused_with_its_reason(tmp_path: Path) -> None:
    bundle = monai_bundle(tmp_path / "bundle", {**NETWORK, "no_such_option": 1})
    words = refused(bundle)
    assert words.startswith("MONAI cannot build network_def of bundle: ")


def test_bundle_without_weights_says_how_to_fetch_them(tmp_path: Path) -> None:
    bundle = monai_bundle(tmp_path / "bundle")
    (bundle / "models" / "model.pt").unlink()
    assert "download_large_files --bundle_path" in refused(bundle)


def test_several_checkpoints_are_refused_with_their_names(tmp_path: Path) -> None:
    models = monai_bundle(tmp_path / "bundle") / "models"
    for name in ("a.pt", "b.pt"):
        (models / name).write_bytes((models / "model.pt").read_bytes())
    assert bundled(models.parent, Asked()).notes == ("weights of models/model.pt",)
    (models / "model.pt").unlink()
    assert "several checkpoints (a.pt, b.pt)" in refused(models.parent)


@pytest.mark.parametrize("wrapping", ["model", "state_dict"])
def test_weights_are_found_among_other_things(wrapping: str, tmp_path: Path) -> None:
    bundle = monai_bundle(tmp_path / "bundle")
    import torch

    path = bundle / "models" / "model.pt"
    weights = torch.load(path, weights_only=True)
    torch.save({wrapping: {f"module.{k}": v for k, v in weights.items()}, "epoch": 3}, path)
    learned = bundled(bundle, Asked())
    found = learned.network.state_dict()
    assert all(torch.equal(found[name], one) for name, one in weights.items())


def explode(words: str) -> None:
    """What nobody may run."""
    pytest.fail(words)


class Bomb:
    """Whatever unpickles this runs something."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (explode, ("the checkpoint was executed",))


def test_checkpoint_is_never_executed(tmp_path: Path) -> None:
    bundle = monai_bundle(tmp_path / "bundle")
    import torch

    torch.save({"model": Bomb()}, bundle / "models" / "model.pt")
    words = refused(bundle)
    assert "reading it would execute that (tests.test_trained.explode)" in words
    assert "torch.save(network.state_dict(), 'model.pt')" in words
    (bundle / "models" / "model.pt").write_bytes(pickle.dumps(Bomb()))
    assert "model.pt" in refused(bundle)


def test_checkpoint_that_is_none_is_refused(tmp_path: Path) -> None:
    bundle = monai_bundle(tmp_path / "bundle")
    import torch

    (bundle / "models" / "model.pt").write_bytes(b"")
    assert "model.pt cannot be read" in refused(bundle)
    torch.save({"epoch": 3}, bundle / "models" / "model.pt")
    assert "has no weights (a state_dict) in it" in refused(bundle)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_torchscript_is_known_by_its_code(tmp_path: Path) -> None:
    needs("torch")
    import torch

    program = torch.jit.trace(torch.nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 4, 4))
    torch.jit.save(program, tmp_path / "model.ts")
    torch.save({"a": torch.zeros(3)}, tmp_path / "model.pt")
    assert is_torchscript(tmp_path / "model.ts")
    assert not is_torchscript(tmp_path / "model.pt")


@pytest.mark.parametrize("wrapped", ["", "_orig_mod.", "module."])
def test_folds_are_built_as_nnunet_does_without_deep_supervision(
    wrapped: str, tmp_path: Path
) -> None:
    source = folds(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", wrapped=wrapped)
    first, second = folded(source, Asked())
    assert (first.folder, second.folder) == ("fold_0", "fold_1")
    assert first.block == (1, 16, 16, 16)
    assert json.loads(first.beside["model.json"]) == {
        "configuration": "3d_fullres",
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": [0, 2],
    }
    import torch

    (answer,) = (first.network.eval()(torch.zeros(1, *first.block)),)
    assert isinstance(answer, torch.Tensor)
    assert answer.shape == (1, 3, 16, 16, 16)


def test_best_checkpoint_serves_where_there_is_no_final_one(tmp_path: Path) -> None:
    source = folds(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", count=1)
    final = source / "fold_0" / "checkpoint_final.pth"
    final.rename(final.with_name("checkpoint_best.pth"))
    (learned,) = folded(source, Asked())
    assert learned.notes == ("there is no checkpoint_final.pth; weights of checkpoint_best.pth",)


def test_trainer_that_this_nnunet_does_not_have_is_named(tmp_path: Path) -> None:
    source = folds(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", count=1)
    import torch

    path = source / "fold_0" / "checkpoint_final.pth"
    from node.trained import _loaded

    torch.save({**_loaded(path), "trainer_name": "nnUNetTrainerOfMine"}, path)
    assert "no trainer nnUNetTrainerOfMine" in refused(source)


def test_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    source = folds(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", count=1)
    import torch

    torch.save({"network_weights": {}}, source / "fold_0" / "checkpoint_final.pth")
    assert "is no checkpoint of nnU-Net 2" in refused(source)
    (source / "fold_0" / "checkpoint_final.pth").unlink()
    assert "has no fold_* folder" in refused(source)
