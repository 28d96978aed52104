"""Trains, measures and exports the FLAIR abnormality engine (2.5-D residual U-Net, 128x128).

    train.py --images DIR --out DIR --seed 7             train, then write model.onnx
    train.py evaluate --images DIR --out DIR --seed 7    measure DIR/model.onnx, write metrics.json
    train.py golden --out DIR                            write golden/ from DIR/model.onnx

DIR of --images holds one .npz per patient: image (slices, 128, 128, 3) with FLAIR in channel 1 and
mask (slices, 128, 128), slices from inferior to superior, rows to the back, columns to the left.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from augment import Augmenter
from network import UNet, export
from phantom import make
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as nnf

LOG = logging.getLogger("train")
SIZE, SPACING = 128, 1.875  # 240 mm field of view: the usual one of the training images
FLAIR = 1
FOREGROUND_FRACTION, CLIP = 0.15, 5.0
TEST_PATIENTS, VALIDATION_PATIENTS = 9, 6
PHANTOM_COUNT, PHANTOM_SHARE, PHANTOM_SEED = 12, 0.06, 10_000
HEAD_HEIGHT_MM = 140.0  # the set stores no slice distance; a volume covers about this much


@dataclass
class Case:
    """One preprocessed volume: image [k, h, w] z-scored, mask bool, ml of one voxel."""

    name: str
    image: np.ndarray
    mask: np.ndarray
    voxel_ml: float


@dataclass
class Operating:
    """What the node applies to the probabilities."""

    threshold: float = 0.5
    minimum_ml: float = 0.0


def to_grid(volume: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """Resample in-plane (linear) to SPACING and centre crop or zero-pad to SIZE, in one step."""
    axes = []
    for length, step in zip(volume.shape[1:], spacing, strict=True):
        axes.append((np.arange(SIZE) - (SIZE - 1) / 2) * SPACING / step + (length - 1) / 2)
    rows, columns = np.meshgrid(*axes, indexing="ij")
    planes = [ndimage.map_coordinates(p, [rows, columns], order=1) for p in volume.astype(float)]
    return np.stack(planes)


def normalise(grid: np.ndarray) -> np.ndarray:
    """Z-score over the foreground (above 0.15 of the 99th percentile), clipped to [-5, 5]."""
    grid = grid.astype(np.float32)
    foreground = grid[grid > FOREGROUND_FRACTION * np.percentile(grid, 99)]
    return np.clip((grid - foreground.mean()) / foreground.std(), -CLIP, CLIP)


def stacks(image: np.ndarray, stride: int = 1) -> np.ndarray:
    """[k, h, w] to [k, 3, h, w]: each slice between its neighbours, end slices repeated."""
    index = np.arange(len(image))
    below, above = np.maximum(index - stride, 0), np.minimum(index + stride, len(image) - 1)
    return np.stack([image[below], image, image[above]], axis=1)


def load_cases(folder: Path) -> list[Case]:
    cases = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as data:
            grid, mask = data["image"][..., FLAIR], data["mask"] > 0
        voxel_ml = SPACING**2 * HEAD_HEIGHT_MM / len(grid) / 1000
        cases.append(Case(path.stem, normalise(grid), mask, voxel_ml))
    return cases


def phantom_case(seed: int) -> Case:
    volume, lesion = make(seed)
    mask = to_grid(lesion, (1.0, 1.0)) > 0.5
    return Case(f"phantom-{seed}", normalise(to_grid(volume, (1.0, 1.0))), mask, 0.0211)


def split(cases: list[Case], seed: int) -> tuple[list[Case], list[Case], list[Case]]:
    """Patients into training, validation and test, by one seeded shuffle."""
    order = np.random.default_rng(seed).permutation(len(cases))
    first, second = TEST_PATIENTS, TEST_PATIENTS + VALIDATION_PATIENTS
    parts = (order[second:], order[first:second], order[:first])
    train, validation, test = ([cases[i] for i in sorted(part)] for part in parts)
    return train, validation, test


class Sampler:
    """Draws batches: half of the slices hold lesion, a small share are phantoms."""

    def __init__(self, cases: list[Case], phantoms: list[Case], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.patients, self.phantoms = cases, phantoms
        self.depths = {c.name: self._depth(c.image) for c in cases + phantoms}

    @staticmethod
    def _depth(image: np.ndarray) -> np.ndarray:
        """Pixels inward from the outline of the head, slice by slice."""
        head = [ndimage.binary_fill_holes(s > image.min() + 0.8) for s in image]
        return np.stack([ndimage.distance_transform_edt(h) for h in head]).astype(np.float32)

    def batch(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        parts = [self._one() for _ in range(size)]
        image, depth, mask = (torch.from_numpy(np.stack(p)) for p in zip(*parts, strict=True))
        return image, depth, mask

    def _one(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pool = self.phantoms if self.rng.random() < PHANTOM_SHARE else self.patients
        case = pool[self.rng.integers(len(pool))]
        choice = np.arange(len(case.image))
        if self.rng.random() < 0.5:
            choice = np.flatnonzero(case.mask.any(axis=(1, 2)))
        k = int(self.rng.choice(choice))
        # Thin slices are also shown with a wider step: other series are 5 to 7 mm apart.
        stride = int(self.rng.integers(1, 3)) if len(case.image) > 40 else 1
        window = case.image[np.clip([k - stride, k, k + stride], 0, len(case.image) - 1)]
        mask = case.mask[k : k + 1].astype(np.float32)
        return window, self.depths[case.name][k : k + 1], mask


def loss_of(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy plus Dice over the whole batch, so empty slices do not dominate."""
    probability = torch.sigmoid(logits)
    overlap = 2 * (probability * mask).sum() + 50
    dice = overlap / (probability.sum() + mask.sum() + 50)
    return nnf.binary_cross_entropy_with_logits(logits, mask) + 1 - dice


@torch.no_grad()
def predict(net: UNet, case: Case) -> np.ndarray:
    net.eval()
    chunks = torch.from_numpy(stacks(case.image)).split(16)
    return np.concatenate([torch.sigmoid(net(c)).numpy()[:, 0] for c in chunks])


def segment(probability: np.ndarray, case: Case, point: Operating) -> np.ndarray:
    """Threshold, then drop 26-connected components below the smallest volume."""
    found = probability >= point.threshold
    labels, count = ndimage.label(found, structure=np.ones((3, 3, 3)))
    volumes = np.bincount(labels.ravel(), minlength=count + 1) * case.voxel_ml
    volumes[0] = 0
    return found & (volumes >= point.minimum_ml)[labels]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    total = int(a.sum()) + int(b.sum())
    return 1.0 if total == 0 else 2.0 * int((a & b).sum()) / total


def mean_dice(pairs: list[tuple[Case, np.ndarray]], point: Operating) -> float:
    return float(np.mean([dice(segment(p, c, point), c.mask) for c, p in pairs]))


def choose_operating(pairs: list[tuple[Case, np.ndarray]]) -> Operating:
    """Best mean Dice on the validation patients over a coarse grid (a fine one would overfit)."""
    grid = [Operating(t / 100, v) for t in range(30, 75, 5) for v in (0.0, 0.25, 0.5, 1.0)]
    return max(grid, key=lambda point: mean_dice(pairs, point))


@torch.no_grad()
def follow(average: UNet, net: UNet, step: int) -> None:
    """Moving average of the weights; it starts fast so that early models are usable."""
    keep = min(0.998, (1 + step) / (20 + step))
    for mean, current in zip(average.parameters(), net.parameters(), strict=True):
        mean.lerp_(current, 1 - keep)


def rate_factor(step: int, steps: int) -> float:
    """Short warm-up, then a cosine down to a hundredth."""
    return min(1.0, step / 200) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)


def learn(net: UNet, optimiser: torch.optim.Optimizer, image: Tensor, mask: Tensor) -> float:
    """One optimiser step; the forward pass is in bfloat16, which halves the time on a CPU."""
    net.train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(image)
    loss = loss_of(logits.float(), mask)
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 5.0)
    optimiser.step()
    return loss.item()


def train(args: argparse.Namespace) -> None:
    """Train with a cosine schedule; model.onnx is always the average with the best validation."""
    torch.manual_seed(args.seed)
    fit, validation, _ = split(load_cases(args.images), args.seed)
    phantoms = [phantom_case(PHANTOM_SEED + i) for i in range(PHANTOM_COUNT)]
    sampler, change = Sampler(fit, phantoms, args.seed), Augmenter(args.seed)
    net = UNet()
    average = deepcopy(net)
    LOG.info("%d parameters", sum(p.numel() for p in net.parameters()))
    optimiser = torch.optim.AdamW(net.parameters(), lr=args.rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: rate_factor(s, args.steps))
    best, total = 0.0, 0.0
    for step in range(1, min(args.stop, args.steps) + 1):
        total += learn(net, optimiser, *change(*sampler.batch(args.batch)))
        schedule.step()
        follow(average, net, step)
        if step % args.every == 0:
            score = mean_dice([(c, predict(average, c)) for c in validation], Operating())
            LOG.info("step %d loss %.3f validation Dice %.3f", step, total / args.every, score)
            total = 0.0
            if score > best:
                best = score
                export(average, args.out / "model.onnx")


def run_onnx(path: Path, batch: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    parts = np.array_split(batch.astype(np.float32), max(1, len(batch) // 16))
    return np.concatenate([session.run(["probability"], {"image": p})[0] for p in parts])


def bootstrap(values: list[float], seed: int) -> tuple[float, float]:
    """95 % interval of the mean, patients resampled 10,000 times."""
    rng = np.random.default_rng(seed)
    draws = rng.choice(np.array(values), size=(10_000, len(values))).mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def hausdorff95(found: np.ndarray, truth: np.ndarray) -> float | None:
    """Median over slices (where both are present) of the in-plane HD95, in pixels."""
    distances = []
    for a, b in zip(found, truth, strict=True):
        if a.any() and b.any():
            edge_a, edge_b = (m & ~ndimage.binary_erosion(m) for m in (a, b))
            there = ndimage.distance_transform_edt(~edge_b)[edge_a]
            back = ndimage.distance_transform_edt(~edge_a)[edge_b]
            distances.append(max(np.percentile(there, 95), np.percentile(back, 95)))
    return float(np.median(distances)) if distances else None


def patient_metrics(case: Case, found: np.ndarray) -> dict[str, object]:
    has, says = case.mask.any(axis=(1, 2)), found.any(axis=(1, 2))
    return {
        "patient": case.name,
        "dice": round(dice(found, case.mask), 4),
        "hd95_px": hausdorff95(found, case.mask),
        "slices": [int((has & says).sum()), int(has.sum()), int((~has & ~says).sum()), len(has)],
        "voxels": [int(found.sum()), int(case.mask.sum())],
    }


def evaluate(args: argparse.Namespace) -> None:
    """Choose the operating point on validation, then measure the exported file on each part."""
    fit, validation, test = split(load_cases(args.images), args.seed)
    path = args.out / "model.onnx"

    def pairs(cases: list[Case]) -> list[tuple[Case, np.ndarray]]:
        return [(c, run_onnx(path, stacks(c.image))[:, 0]) for c in cases]

    chosen = pairs(validation)
    point = choose_operating(chosen)
    report: dict[str, object] = {"threshold": point.threshold, "minimum_ml": point.minimum_ml}
    groups = {"test": pairs(test), "validation": chosen, "train": pairs(fit)}
    groups["phantom"] = pairs([phantom_case(seed) for seed in range(10)])
    for name, group in groups.items():
        rows = [patient_metrics(c, segment(p, c, point)) for c, p in group]
        scores = [float(str(r["dice"])) for r in rows]
        report[name] = {
            "mean": float(np.mean(scores)),
            "median": float(np.median(scores)),
            "interval": bootstrap(scores, args.seed),
            "patients": rows,
        }
        LOG.info("%s: mean Dice %.3f of %d", name, np.mean(scores), len(scores))
    (args.out / "metrics.json").write_text(json.dumps(report, indent=1), encoding="utf-8")


def golden(args: argparse.Namespace) -> None:
    """Three neighbouring stacks of a phantom and what the shipped file answers."""
    case = phantom_case(0)
    middle = int(case.mask.sum(axis=(1, 2)).argmax())
    batch = stacks(case.image)[middle - 1 : middle + 2].astype(np.float16)
    folder = args.out / "golden"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "input.npy", batch)
    np.save(folder / "expected.npy", run_onnx(args.out / "model.onnx", batch).astype(np.float16))


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = {"train": train, "evaluate": evaluate, "golden": golden}
    parser.add_argument("command", nargs="?", default="train", choices=list(commands))
    parser.add_argument("--images", type=Path, default=Path("images"))
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6000, help="length of the schedule")
    # Validation fell after step 3250, so the rest of the schedule is not worth its time.
    parser.add_argument("--stop", type=int, default=3500, help="stop after this step of it")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--every", type=int, default=250)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    commands[args.command](args)


if __name__ == "__main__":
    main()
