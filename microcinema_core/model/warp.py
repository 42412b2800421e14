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
THIN = 0.02  # weight of what is shown where nothing arrives
SCALE = FINE * UNIT  # the same in points
RATE = 0.2  # keeps a weight's step of 0.001 small against a cell


class ForwardWarp(nn.Module):
    """Gives every point of a condition picture a path through the clip, and tells what its arrival changes.

    With text, a point x goes to exp(τM)·x + τ·Σ_j g_j(x)·v_j. M, an affine motion of the whole picture (pan, zoom,
    roll), and the velocities v_j are linear in the pooled text; the regions g_j are read from the picture. τ is
    the signed time since the condition's own frame. Without text, each point of one end goes to x + |τ|·v(x) on its way
    to the other end, v read from both pictures: a clip played backwards is warped alike. Where nothing arrives, the
    nearest points that make a good background are shown.

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
        self.read = nn.Sequential(
            operations.Conv2d(pictures * (width + latent), 2 * width, 3, padding=1, **kw),
            nn.SiLU(),
            operations.Conv2d(2 * width, 2 * width, 3, padding=1, **kw),
            nn.SiLU(),
        )
        self.points = operations.Conv2d(2 * width + latent, FINE**2 * (self.motions + 2 + latent), 1, **kw)
        if self.reads_text:
            self.velocities = zero(operations.Linear(config.context_dim, 2 * (REGIONS + 3), bias=False, **kw))
        self.to_features = operations.Conv2d(FINE**2 * (latent + 1), width, 1, bias=False, **kw)
        self.to_latents = operations.Conv2d(FINE**2 * (latent + 1), latent, 1, bias=False, **kw)
        with torch.no_grad():
            if not self.reads_text:
                self.points.weight[: 2 * FINE**2] = self.points.bias[: 2 * FINE**2] = 0  # the velocities
            copies = torch.eye(latent, device=device).repeat_interleave(FINE**2, 0)[..., None, None]
            self.points.weight[-len(copies) :] = F.pad(copies, (0, 0, 0, 0, 2 * width, 0))
            self.to_latents.weight[:] = F.pad(copies.transpose(0, 1) / FINE**2, (0, 0, 0, 0, 0, FINE**2))

    def read_points(self, latents: Tensor, features: Tensor) -> Tensor:
        """Latents and appearance features (clips, k, C, h, w) of the k pictures to their points, once per clip:
        (clips, k, motions + 2 + C', H, W), H = FINE·h: each point's motion, two weights and features."""
        own = torch.cat([features, latents], dim=2)
        seen = own if own.shape[1] == 1 else torch.cat([own, own.flip(1)], dim=2)
        read = self.read(seen.flatten(0, 1))
        points = self.points(torch.cat([read, latents.flatten(0, 1)], dim=1))
        return F.pixel_shuffle(points, FINE).unflatten(0, own.shape[:2])

    def forward(self, points: Tensor, text: Tensor | None, times: Tensor) -> tuple[Tensor, Tensor]:
        """Points of some clips, pooled texts (b, 1, D) for a multiple of them, and times (k, t) since each picture's
        frame, to what the motion changes in the network's features (b·t, C, h, w) and in the latents."""
        if text is not None:
            points = points.repeat(text.shape[0] // points.shape[0], 1, 1, 1, 1)
        motions, nearness, likeness, features = points.float().split([self.motions, 1, 1, self.features], dim=2)
        # What is nearer hides what is farther; what lies behind shows where nothing arrives, and needs less detail.
        weights = (4 * torch.tanh(nearness / 4)).exp(), torch.sigmoid(likeness)
        front, back = (torch.cat([weight * features, weight], dim=2)[:, None] for weight in weights)  # (b, 1, k, …)
        back = _halved(back)
        if times.shape[0] > 1:
            closeness = (1 - times.abs() / times.abs().max()).T[:, :, None, None, None]
            front, back = front * closeness, back * closeness
        places = self._paths(motions, text, times)
        arrived = _splat_clip(front, places), _splat_clip(back, (_halved(places) - 0.5) / 2)
        change = _seen(*arrived) - _seen(front.sum(dim=2), back.sum(dim=2))
        change = F.pixel_unshuffle(change.flatten(0, 1).to(points.dtype), FINE)
        return self.to_features(change), self.to_latents(change)

    def flow(self, points: Tensor, text: Tensor | None) -> Tensor:
        """Every point's velocity in its own picture, (b, k, 2, H, W): right and down, points per unit of τ."""
        motions = points[:, :, : self.motions].float()
        if text is None:
            return SCALE * RATE * motions
        affine, vectors = self._told(text)
        places, _ = _places(motions)
        camera = torch.einsum("bij,jhw->bihw", affine[:, :2, :2], places) + affine[:, :2, 2, None, None]
        return SCALE * (camera[:, None] + self._apart(motions, vectors))

    def _paths(self, motions: Tensor, text: Tensor | None, times: Tensor) -> Tensor:
        """Where each point is at each time, (b, t, k, 2, H, W): x and y on the points' grid."""
        places, middle = _places(motions)
        times = times.T[:, :, None, None]
        if text is None:
            return middle + SCALE * (places + RATE * times.abs()[..., None] * motions[:, None])
        affine, vectors = self._told(text)
        moves = torch.linalg.matrix_exp(times * affine[:, None, None])[..., :2, :]
        camera = torch.einsum("btkij,jhw->btkihw", moves[..., :2], places) + moves[..., 2, None, None]
        return middle + SCALE * (camera + times[..., None] * self._apart(motions, vectors)[:, None])

    def _told(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled texts to what they say: the matrix M of the camera (b, 3, 3), the last row zero, and the regions'
        velocities (b, REGIONS, 2)."""
        vectors = RATE * self.velocities(text).float().unflatten(2, (-1, 2))[:, 0]
        return F.pad(vectors[:, REGIONS:].transpose(1, 2), (0, 0, 0, 1)), vectors[:, :REGIONS]

    def _apart(self, motions: Tensor, vectors: Tensor) -> Tensor:
        return torch.einsum("bkjhw,bji->bkihw", torch.sigmoid(4 * motions - 2), vectors)


def _places(points: Tensor) -> tuple[Tensor, Tensor]:
    """Where the points (…, H, W) are, (2, H, W), from the picture's middle in UNIT, and the middle itself."""
    size = torch.tensor(points.shape[:-3:-1], device=points.device)  # (W, H)
    y, x = (torch.arange(n, device=points.device) for n in points.shape[-2:])
    middle = (size - 1)[:, None, None] / 2
    return (torch.stack(torch.meshgrid(x, y, indexing="xy")) - middle) / SCALE, middle


def _halved(maps: Tensor) -> Tensor:
    """(…, H, W) to (…, H/2, W/2)."""
    return maps.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2)).mean((-3, -1))


def _splat_clip(values: Tensor, places: Tensor) -> Tensor:
    """Values (b, 1 or t, k, C, H, W) at places (b, t, k, 2, H, W) to (b, t, C, H, W)."""
    values = values.expand(-1, places.shape[1], -1, -1, -1, -1)
    return splat(values.flatten(0, 1), places.flatten(0, 1)).unflatten(0, places.shape[:2])


def _seen(front: Tensor, back: Tensor) -> Tensor:
    """Sums of weighted features and of weights (b, t, C + 1, H, W), behind at half the resolution, to features and how
    well they are known, 0 to 1."""
    behind = F.interpolate(_fill(back.flatten(0, 1)), scale_factor=2, mode="bilinear").unflatten(0, back.shape[:2])
    features, weight = front[:, :, :-1], front[:, :, -1:]
    return torch.cat([(features + THIN * behind) / (weight + THIN), weight / (weight + 1)], dim=2)


def _fill(sums: Tensor) -> Tensor:
    """Sums of weighted features and of weights (n, C + 1, H, W) to features everywhere, from as near as there are any:
    pull-push on a pyramid (Gortler et al., "The Lumigraph", SIGGRAPH 1996)."""

    def push(sums):
        if min(sums.shape[-2:]) < 2:
            return sums
        coarse = push(F.avg_pool2d(sums, 2, ceil_mode=True))
        return sums + THIN * F.interpolate(coarse, size=sums.shape[-2:], mode="bilinear")

    total = push(sums)
    return total[:, :-1] / total[:, -1:].clamp(min=1e-20)  # all may have left the picture


class _Splat(torch.autograd.Function):
    """The sum below, and its gradient by the reverse, grid_sample: four times as fast as autograd's own."""

    @staticmethod
    def forward(ctx, values, places):
        ctx.save_for_backward(values, places)
        height, width = values.shape[-2:]
        values = values.transpose(1, 2).flatten(2)
        x, y = places.transpose(1, 2).flatten(3).unbind(1)
        x, y = x.flatten(1), y.flatten(1)
        left, top = x.floor(), y.floor()
        out = torch.zeros(*values.shape[:2], height * width, dtype=values.dtype, device=values.device)
        for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            share = (1 - (x - column).abs()) * (1 - (y - row).abs()) * inside
            index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            out.scatter_add_(2, index.long()[:, None].expand_as(values), values * share[:, None])
        return out.unflatten(2, (height, width))

    @staticmethod
    def backward(ctx, grad):
        values, places = ctx.saved_tensors
        pictures = places.shape[1]
        unit = 2 / (torch.tensor(grad.shape[:-3:-1], device=grad.device) - 1)  # grid_sample's: a picture is 2 wide
        with torch.enable_grad():
            places = places.permute(0, 1, 3, 4, 2).flatten(1, 2).detach().requires_grad_()
            found = F.grid_sample(grad.contiguous(), places * unit - 1, align_corners=True)
            [moved] = torch.autograd.grad(found, places, values.transpose(1, 2).flatten(2, 3))
        shape = (pictures, -1)
        return found.detach().unflatten(2, shape).transpose(1, 2), moved.unflatten(1, shape).permute(0, 1, 4, 2, 3)


def splat(values: Tensor, places: Tensor) -> Tensor:
    """Add values (n, k, C, H, W) up at places (n, k, 2, H, W), x and y in grid steps, each shared out to the four
    nearest points of the grid; what falls outside is lost. To (n, C, H, W)."""
    return _Splat.apply(values, places)
