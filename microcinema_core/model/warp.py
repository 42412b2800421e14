"""Appearance that moves: the bundled models' shortcut to motion. Latents of the condition go where a frame shows them.

Forward warping with soft visibility: Niklaus and Liu, "Softmax Splatting for Video Frame Interpolation" (CVPR 2020).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import zero

FINE = 4  # points per latent cell, along one side
REGIONS = 16  # parts of the picture that may move apart from the camera
UNIT = 8.0  # latent cells: the length that velocities are given in
RATE = 0.2  # keeps a weight's step of 0.001 small against a cell


class ForwardWarp(nn.Module):
    """Gives every point of a condition picture a path through the clip, and tells what its arrival changes.

    With text, a point x goes to exp(τM)·x + τ·Σ_j g_j(x)·v_j. M, an affine motion of the whole picture (pan, zoom,
    roll), and the velocities v_j are linear in the pooled text; the regions g_j are read from the picture. τ is
    the signed time since the condition's own frame. Without text, each point of one end goes to x + |τ|·v(x) on its way
    to the other end, v read from both pictures: a clip played backwards is warped alike.

    Untrained, nothing moves, and a point's features are its cell's latents: moving them is interpolation.
    """

    def __init__(self, config, *, operations=nn, dtype=None, device=None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        width, latent = config.model_channels, config.latent_channels
        self.features = latent
        self.reads_text = config.context_dim is not None
        self.motions = REGIONS if self.reads_text else 2
        pictures = 1 if config.condition == "centre" else 2
        self.read = operations.Conv2d(pictures * (width + latent), width, 3, padding=1, **kw)
        self.points = operations.Conv2d(width + latent, FINE**2 * (self.motions + 1 + latent), 1, **kw)
        if self.reads_text:
            self.velocities = zero(operations.Linear(config.context_dim, 2 * (REGIONS + 3), bias=False, **kw))
        self.to_features = operations.Conv2d(FINE**2 * (latent + 1), width, 1, bias=False, **kw)
        self.to_latents = operations.Conv2d(FINE**2 * (latent + 1), latent, 1, bias=False, **kw)
        with torch.no_grad():
            if not self.reads_text:
                self.points.weight[: 2 * FINE**2] = self.points.bias[: 2 * FINE**2] = 0  # the velocities
            copies = torch.eye(latent, device=device).repeat_interleave(FINE**2, 0)[..., None, None]
            self.points.weight[-len(copies) :] = F.pad(copies, (0, 0, 0, 0, width, 0))
            self.to_latents.weight[:] = F.pad(copies.transpose(0, 1) / FINE**2, (0, 0, 0, 0, 0, FINE**2))

    def read_points(self, latents: Tensor, features: Tensor) -> Tensor:
        """Latents and appearance features (clips, k, C, h, w) of the k pictures to their points, once per clip:
        (clips, k, motions + 1 + C', H, W), H = FINE·h: each point's motion, weight and features."""
        own = torch.cat([features, latents], dim=2)
        seen = own if own.shape[1] == 1 else torch.cat([own, own.flip(1)], dim=2)
        read = F.silu(self.read(seen.flatten(0, 1)))
        points = self.points(torch.cat([read, latents.flatten(0, 1)], dim=1))
        return F.pixel_shuffle(points, FINE).unflatten(0, own.shape[:2])

    def forward(self, points: Tensor, text: Tensor | None, times: Tensor) -> tuple[Tensor, Tensor]:
        """Points of some clips, pooled texts (b, 1, D) for a multiple of them, and times (k, t) since each picture's
        frame, to what the motion changes in the network's features (b·t, C, h, w) and in the latents."""
        if text is not None:
            points = points.repeat(text.shape[0] // points.shape[0], 1, 1, 1, 1)
        motions, weight, features = points.float().split([self.motions, 1, self.features], dim=2)
        weight = (4 * torch.tanh(weight / 4)).exp()  # what is nearer hides what is farther
        values = torch.cat([weight * features, weight], dim=2)
        closeness = 1 - times.abs() / times.abs().max() if times.shape[0] > 1 else torch.ones_like(times)
        values = (values[:, None] * closeness.T[:, :, None, None, None]).flatten(0, 1)  # (b·t, k, …)
        moved = splat(values, self._paths(motions, text, times).flatten(0, 1))
        change = F.pixel_unshuffle((_seen(moved) - _seen(values.sum(dim=1))).to(points.dtype), FINE)
        return self.to_features(change), self.to_latents(change)

    def _paths(self, motions: Tensor, text: Tensor | None, times: Tensor) -> Tensor:
        """Where each point is at each time, (b, t, k, 2, H, W): x and y on the points' grid."""
        size = torch.tensor(motions.shape[:-3:-1], device=motions.device)  # (W, H)
        y, x = (torch.arange(n, device=motions.device) for n in motions.shape[-2:])
        middle, scale = (size - 1)[:, None, None] / 2, FINE * UNIT
        places = (torch.stack(torch.meshgrid(x, y, indexing="xy")) - middle) / scale
        if text is None:
            return middle + scale * (places + RATE * times.T.abs()[:, :, None, None, None] * motions[:, None])
        vectors = RATE * self.velocities(text).float().unflatten(2, (-1, 2))[:, 0]
        affine = F.pad(vectors[:, REGIONS:].transpose(1, 2), (0, 0, 0, 1))  # (b, 3, 3), the last row zero
        moves = torch.linalg.matrix_exp(times.T[:, :, None, None] * affine[:, None, None])[..., :2, :]
        camera = torch.einsum("btkij,jhw->btkihw", moves[..., :2], places) + moves[..., 2, None, None]
        regions = torch.sigmoid(motions - 2)
        apart = torch.einsum("bkjhw,bji->bkihw", regions, vectors[:, :REGIONS])
        return middle + scale * (camera + times.T[:, :, None, None, None] * apart[:, None])


def _seen(sums: Tensor) -> Tensor:
    """Sums of weighted features and of weights (n, C + 1, H, W) to features, and how well they are known, 0 to 1."""
    features, weight = sums[:, :-1], sums[:, -1:]
    return torch.cat([features / (weight + 0.01), weight / (weight + 1)], dim=1)


def splat(values: Tensor, places: Tensor) -> Tensor:
    """Add values (n, k, C, H, W) up at places (n, k, 2, H, W), x and y in grid steps, each shared out to the four
    nearest points of the grid; what falls outside is lost. To (n, C, H, W)."""
    height, width = values.shape[-2:]
    values = values.transpose(1, 2).flatten(2)
    x, y = places.transpose(1, 2).flatten(3).unbind(1)
    x, y = x.flatten(1), y.flatten(1)
    left, top = x.detach().floor(), y.detach().floor()
    out = torch.zeros(*values.shape[:2], height * width, dtype=values.dtype, device=values.device)
    for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        share = (1 - (x - column).abs()) * (1 - (y - row).abs()) * inside
        index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
        out.scatter_add_(2, index.long()[:, None].expand_as(values), values * share[:, None])
    return out.unflatten(2, (height, width))
