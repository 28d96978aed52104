"""Random changes of a training batch that stand for other heads, scanners and protocols.

A batch is a float tensor [n, 3, h, w] of z-scored neighbouring slices. Everything that multiplies
works on `u`, the distance above air, because a z-score of zero is not a signal of zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as nnf

BRAIN_ABOVE_AIR = 2.2  # typical z distance between air and brain tissue in these volumes


class Augmenter:
    """Applies all changes to a batch; each has its own probability per sample."""

    def __init__(self, seed: int) -> None:
        self.gen = torch.Generator().manual_seed(seed)

    def __call__(self, image: Tensor, depth: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`depth` is the pixel distance inward from the head's outline, `mask` the label."""
        air = image.amin(dim=(1, 2, 3), keepdim=True)
        u = image - air
        u, depth, mask = self._warp(u, depth, mask)
        u = self._neighbours(self._field_of_view(u))
        u, thinned = self._scalp(u, depth)
        u = self._resolution(self._gamma(self._bias(u)))
        u = self._noise(u)
        gain = self._span(u, 0.75, 1.35) * torch.where(thinned, self._span(u, 1.0, 1.6), 1.0)
        image = u * gain + air + self._span(u, -0.35, 0.35)
        return image.clamp(-5, 5), mask

    def _span(self, like: Tensor, low: float, high: float) -> Tensor:
        rand = torch.rand(len(like), 1, 1, 1, generator=self.gen)
        return low + (high - low) * rand

    def _chance(self, like: Tensor, probability: float) -> Tensor:
        return self._span(like, 0, 1) < probability

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.gen)

    def _warp(self, u: Tensor, depth: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotation, anisotropic scale, shift, flips and a elastic field in one resampling."""
        n, wide = len(u), math.log(1.4)
        angle = self._span(u, -0.45, 0.45).view(n)
        # Two draws: sizes near the true one come more often than the extremes.
        zoom = torch.exp((self._span(u, -wide, wide) + self._span(u, -wide, wide)) / 2).view(n, 1)
        zoom = zoom * torch.exp(0.08 * self._normal(n, 2))
        flip_x = torch.where(self._chance(u, 0.5), -1.0, 1.0).view(n)
        flip_y = torch.where(self._chance(u, 0.03), -1.0, 1.0).view(n)
        cos, sin = torch.cos(angle), torch.sin(angle)
        theta = torch.zeros(n, 2, 3)
        zoom = zoom * torch.stack([flip_x, flip_y], 1)
        theta[:, 0, 0], theta[:, 0, 1] = cos * zoom[:, 0], -sin * zoom[:, 1]
        theta[:, 1, 0], theta[:, 1, 1] = sin * zoom[:, 0], cos * zoom[:, 1]
        theta[:, :, 2] = (torch.rand(n, 2, generator=self.gen) - 0.5) * 0.3
        grid = nnf.affine_grid(theta, list(u.shape), align_corners=False)
        strength = 0.03 * self._chance(u, 0.4) * self._span(u, 0.3, 1.0)
        bend = nnf.interpolate(self._normal(n, 2, 6, 6), u.shape[2:], mode="bicubic")
        grid = grid + (bend * strength).permute(0, 2, 3, 1)
        stacked = nnf.grid_sample(torch.cat([u, depth, mask], 1), grid, align_corners=False)
        return stacked[:, :3], stacked[:, 3:4], (stacked[:, 4:5] > 0.5).float()

    def _field_of_view(self, u: Tensor) -> Tensor:
        """Blank bands at the edges: a smaller field of view than the head."""
        n, _, height, width = u.shape
        keep = torch.ones(n, 1, height, width)
        for index in torch.nonzero(self._chance(u, 0.1).view(n)).flatten().tolist():
            top, bottom, left, right = (torch.rand(4, generator=self.gen) * 26).long().tolist()
            keep[index, :, :top] = keep[index, :, height - bottom :] = 0
            keep[index, :, :, :left] = keep[index, :, :, width - right :] = 0
        return u * keep

    def _neighbours(self, u: Tensor) -> Tensor:
        """Upside-down stacks, and stacks whose neighbours are missing as at a volume's end."""
        u = torch.where(self._chance(u, 0.5), u.flip(1), u)
        alone = u[:, 1:2].expand_as(u)
        first = torch.cat([u[:, 1:2], u[:, 1:]], 1)
        u = torch.where(self._chance(u, 0.05), first, u)
        return torch.where(self._chance(u, 0.08), alone, u)

    def _scalp(self, u: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Another brightness of the outer rim: fat suppression, or a rim brighter than here."""
        chosen = self._chance(u, 0.3)
        edge = torch.sigmoid((depth - self._span(u, 2.5, 7.0)) / 0.6)
        level = self._span(u, 0.05, 1.4)
        changed = u * (edge + (1 - edge) * level)
        return torch.where(chosen, changed, u), chosen & (level < 0.6)

    def _bias(self, u: Tensor) -> Tensor:
        field = nnf.interpolate(self._normal(len(u), 1, 4, 4), u.shape[2:], mode="bicubic")
        strength = self._chance(u, 0.5) * self._span(u, 0.03, 0.22)
        return u * torch.exp(field * strength)

    def _gamma(self, u: Tensor) -> Tensor:
        """Power law that keeps brain tissue where it is and changes the contrast around it."""
        power = torch.exp(self._span(u, math.log(0.65), math.log(1.5)))
        power = torch.where(self._chance(u, 0.5), power, 1.0)
        return BRAIN_ABOVE_AIR * (u.clamp(min=1e-4) / BRAIN_ABOVE_AIR) ** power

    def _resolution(self, u: Tensor) -> Tensor:
        """Blur, sharpening by the same kernel's complement, or a coarser matrix."""
        soft = nnf.avg_pool2d(nnf.avg_pool2d(u, 3, 1, 1), 3, 1, 1)
        amount = self._span(u, -0.6, 1.0) * self._chance(u, 0.35)
        u = (u + amount * (soft - u)).clamp(min=0)
        factor = 0.45 + 0.45 * float(torch.rand(1, generator=self.gen))
        small = nnf.interpolate(u, scale_factor=factor, mode="bilinear", antialias=True)
        coarse = nnf.interpolate(small, u.shape[2:], mode="bilinear")
        return torch.where(self._chance(u, 0.15), coarse, u)

    def _noise(self, u: Tensor) -> Tensor:
        """Rician noise: magnitude of a complex signal, so air gets a floor as well."""
        sigma = self._chance(u, 0.35) * self._span(u, 0.02, 0.22)
        return torch.hypot(u + sigma * self._normal(*u.shape), sigma * self._normal(*u.shape))
