"""Appearance that moves: the bundled models' shortcut to motion. Pixels of the condition go where a frame shows them.

Forward warping with soft visibility: Niklaus and Liu, "Softmax Splatting for Video Frame Interpolation" (CVPR 2020).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .autoencoder import Autoencoder
from .layers import ResBlock, SpatialTransformer, zero

REGIONS = 16  # parts of the picture that may move apart from the camera
UNIT = 8.0  # latent cells: the length that velocities are given in
THIN = 0.02  # weight of what is shown where nothing arrives
RATE = 0.2  # keeps a weight's step of 0.001 small against a cell
REACH, SIDE = 4, 9  # steps of two pixels that a match is looked for in each direction; places looked at, in a row
SHARP = 20.0  # of the choice among matches
MATCHES = 12  # channels of what is read from them
COARSE, FINE = 24, 48  # channels of what is read at half the picture's resolution: of features, and of both
WIDER = 24  # channels more at each lower resolution of a second look
NAMED = 10  # things of a colour each, whose velocities a text tells
ALIKE = 0.02  # units in a τ: velocities that are taken for one another
MOVING = 0.05  # the same: half the slowest thing's motion
NEARER, UNLIKE = 2, 12  # what moves, as logits: in front of what stands still, and never a background


class ForwardWarp(nn.Module):
    """Gives every pixel of a condition picture a path through the clip, and tells what arrives, as latents.

    With text, a pixel x goes to exp(τM)·x + τ·v(x). M, an affine motion of the whole picture (pan, zoom, roll), is
    linear in the pooled text, and v is the nearest to Σ_j g_j(x)·v_j of the velocities that the text tells of the
    things it names, or 0: v_j too are linear in the text, and the regions g_j are read from picture and text. τ is
    the signed time since the condition's own frame. Without text, each pixel of one end goes to x + |τ|·v(x) on its
    way to the other end: a clip played backwards is warped alike. v is read from both pictures and from where in the
    other one its surroundings are found (a cost volume and its soft argmin, as in Kendall et al., "End-to-End
    Learning of Geometry and Context for Deep Stereo Regression", ICCV 2017). Where nothing arrives, the nearest
    pixels that make a good background are shown.

    Between latents and pixels stands the model's own autoencoder, frozen: moved latents would lose their detail. So
    the paths get no gradient from the latents; they are learned from `flow` and `render`. Untrained, no text moves
    anything.
    """

    def __init__(self, config, *, operations=nn, dtype=None, device=None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        width, latent, factor = config.model_channels, config.latent_channels, config.forward_warp.factor
        self.autoencoder = Autoencoder(config.forward_warp, operations=operations, **kw).requires_grad_(False)
        self.reads_text = config.context_dim is not None
        self.motions = REGIONS if self.reads_text else 3
        self.unit = UNIT * factor  # in pixels
        pictures = 1 if config.condition == "centre" else 2

        def conv(channels, out_channels, size):
            return operations.Conv2d(channels, out_channels, size, padding=size // 2, **kw)

        self.read_features = conv(pictures * (width + latent), 2 * width, 3)
        self.norm = operations.GroupNorm(config.norm_groups, 2 * width, **kw)
        self.read_further = conv(2 * width, 2 * width, 3)
        self.enlarge = nn.Sequential(conv(2 * width, COARSE * (factor // 2) ** 2, 1), nn.PixelShuffle(factor // 2))
        self.read_pixels = conv(COARSE + pictures * 12 + (0 if self.reads_text else MATCHES), FINE, 3)
        self.norm_pixels = operations.GroupNorm(config.norm_groups, FINE, **kw)
        self.points = nn.Sequential(conv(FINE, FINE, 3), nn.SiLU(), conv(FINE, 4 * (self.motions + 2), 1))
        if self.reads_text:
            self.velocities = zero(operations.Linear(config.context_dim, 2 * (REGIONS + 3), bias=False, **kw))
            self.named = zero(operations.Linear(config.context_dim, 2 * NAMED, bias=False, **kw)).requires_grad_(False)
            self.looked_for = operations.Linear(config.context_dim, 2 * (2 * width + FINE), bias=False, **kw)
            self.look_again = _SecondLook(config, int(math.log2(factor)) - 1, operations=operations, **kw)
        else:
            self.choice, self.read_matches = conv(SIDE**2, SIDE**2, 1), conv(SIDE**2, MATCHES, 1)
            with torch.no_grad():  # a likely match is much alike and near
                distance = torch.cartesian_prod(*[torch.arange(-REACH, REACH + 1.0)] * 2).square().sum(1)
                self.choice.weight.copy_(-400 / SHARP * torch.eye(SIDE**2)[..., None, None])
                self.choice.bias.copy_(-distance / SHARP)

    def look(self, latents: Tensor, features: Tensor, pixels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What is the same for all texts and times, once per clip: latents and appearance features (clips, k, C, h, w)
        of the k pictures to their pixels (clips, k, 3, H, W), unless these are known, and what is read from them."""
        if pixels is None:
            with torch.no_grad():
                pixels = self.autoencoder.decode(latents.flatten(0, 1)).clamp(0, 1).unflatten(0, latents.shape[:2])
        own = torch.cat([features, latents], dim=2)
        return pixels, self.read_features(_with_other(own).flatten(0, 1)).unflatten(0, own.shape[:2])

    @torch.no_grad()
    def forward(self, seen: tuple[Tensor, Tensor], text: Tensor | None, times: Tensor) -> tuple[Tensor, Tensor]:
        """What `look` gives for some clips, pooled texts (b, 1, D) for a multiple of them, and times (k, t) or
        (b, k, t) since each picture's frame, to the latents of what is shown (b·t, C, h, w) and how well it is known
        (b·t, 1, h, w)."""
        rendered = self.render(seen[0], self.read(seen, text), text, times)
        rendered, known = (x.flatten(0, 1).to(seen[1].dtype) for x in rendered)
        latents = self.autoencoder.encode(rendered.contiguous(memory_format=torch.channels_last))
        return latents, F.avg_pool2d(known, self.autoencoder.config.factor)

    def read(self, seen: tuple[Tensor, Tensor], text: Tensor | None) -> Tensor:
        """For each pixel, its velocity apart from the camera's, right and down, and two weights: (b, k, 4, H, W)."""
        pixels, h = seen
        h, near = self.norm(h.flatten(0, 1)), F.pixel_unshuffle(_with_other(pixels).flatten(0, 1), 2).to(h.dtype)
        if text is not None:
            h, near = (x.repeat(len(text) // len(x), 1, 1, 1) for x in (h, near))
            told = RATE * self.looked_for(text[:, 0].to(h.dtype))[..., None, None]
            scale, shift, fine_scale, fine_shift = told.split([h.shape[1]] * 2 + [FINE] * 2, dim=1)
            h = h * (1 + scale) + shift
        else:
            matches, matched = self._match(pixels)
            near = torch.cat([near, self.read_matches(matches.to(h.dtype))], dim=1)
        h = self.enlarge(F.silu(self.read_further(F.silu(h))))
        h = self.norm_pixels(self.read_pixels(torch.cat([h, near], dim=1)))
        if text is not None:
            h = self.look_again(h * (1 + fine_scale) + fine_shift, text[:, 0].to(h.dtype))
        motions, weights = self.points(F.silu(h)).float().unflatten(1, (-1, 4)).split([self.motions, 2], dim=1)
        if text is None:
            velocities = RATE * motions[:, :2] + torch.sigmoid(motions[:, 2:]) * matched[:, :, None]
        else:
            velocities = torch.einsum("bjshw,bji->bishw", torch.sigmoid(4 * motions - 2), self._told(text)[:, :REGIONS])
        points = F.pixel_shuffle(torch.cat([velocities, weights], dim=1).flatten(1, 2), 2)
        return points.unflatten(0, (-1, pixels.shape[1]))

    def _match(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Where each of two pictures' (clips, 2, 3, H, W) pixels may be in the other one: how likely each step of two
        pixels is, (clips·2, SIDE², H/2, W/2), and their mean as a velocity (clips·2, 2, H/2, W/2)."""
        own, steps = _halved(pixels), range(SIDE)
        height, width = own.shape[-2:]
        other = F.pad(own.flip(1).flatten(0, 1), [REACH] * 4, mode="replicate")
        own = own.flatten(0, 1)
        unlike = [(other[..., y:, x:][..., :height, :width] - own).abs().mean(1) for y in steps for x in steps]
        unlike = F.avg_pool2d(torch.stack(unlike, dim=1), 3, stride=1, padding=1, count_include_pad=False)
        matches = torch.softmax(SHARP * self.choice(unlike).float(), dim=1)
        step = torch.arange(-REACH, REACH + 1, device=pixels.device) / self.unit  # of two pixels, in a τ of two
        right, down = (matches.unflatten(1, (SIDE, SIDE)).sum(dim) for dim in (1, 2))
        return matches, torch.stack([torch.einsum("bshw,s->bhw", x, step) for x in (right, down)], dim=1)

    def render(self, pixels: Tensor, points: Tensor, text: Tensor | None, times: Tensor) -> tuple[Tensor, Tensor]:
        """What is shown, as pixels (b, t, 3, H, W), and how well each is known, 0 to 1, (b, t, 1, H, W)."""
        if text is not None:
            points = _with_edges(torch.cat([self._decided(points[:, :, :2], text), points[:, :, 2:]], dim=2))
        velocities, nearness, likeness = points.split([2, 1, 1], dim=2)
        pixels = pixels.float().repeat(len(points) // len(pixels), 1, 1, 1, 1)
        # What is nearer hides what is farther; what lies behind shows where nothing arrives, and needs less detail.
        weights = (4 * torch.tanh(nearness / 4)).exp(), torch.sigmoid(likeness)
        front, back = (torch.cat([weight * pixels, weight], dim=2)[:, None] for weight in weights)  # (b, 1, k, …)
        back = _halved(back)
        if times.shape[-2] > 1:
            closeness = (1 - times.abs() / times.abs().sum(dim=-2, keepdim=True)).mT[..., None, None, None]
            front, back = front * closeness, back * closeness
        places = self._paths(velocities, text, times)
        return _seen(_splat_clip(front, places), _splat_clip(back, (_halved(places) - 0.5) / 2))

    def flow(self, points: Tensor, text: Tensor | None) -> Tensor:
        """Every pixel's velocity in its own picture, (b, k, 2, H, W): right and down, pixels per unit of τ."""
        velocities = points[:, :, :2]
        if text is not None:
            affine, (places, _) = self._camera(text), self._places(points)
            camera = torch.einsum("bij,jhw->bihw", affine[:, :2, :2], places) + affine[:, :2, 2, None, None]
            velocities = velocities + camera[:, None]
        else:  # the last frame's go against time
            velocities = torch.stack([velocities[:, 0], -velocities[:, 1]], dim=1)
        return self.unit * velocities

    def _paths(self, velocities: Tensor, text: Tensor | None, times: Tensor) -> Tensor:
        """Where each pixel is at each time, (b, t, k, 2, H, W): x and y on the pixels' grid."""
        places, middle = self._places(velocities)
        times = times.mT[..., None, None]
        if text is None:
            return middle + self.unit * (places + times.abs()[..., None] * velocities[:, None])
        moves = torch.linalg.matrix_exp(times * self._camera(text)[:, None, None])[..., :2, :]
        camera = torch.einsum("btkij,jhw->btkihw", moves[..., :2], places) + moves[..., 2, None, None]
        return middle + self.unit * (camera + times[..., None] * velocities[:, None])

    def _told(self, text: Tensor) -> Tensor:
        """Pooled texts to the vectors they say (b, REGIONS + 3, 2): the regions' velocities, the camera's columns."""
        return RATE * self.velocities(text).float().unflatten(2, (-1, 2))[:, 0]

    def _decided(self, velocities: Tensor, text: Tensor) -> Tensor:
        """Velocities (b, 1, 2, H, W) to the nearest of those that the text tells of the things it names, or to none:
        what is told exactly need not be found exactly. As they are where the text names nothing that moves."""
        named = self.named(text[:, 0]).float().unflatten(1, (-1, 2))
        moving = (named.norm(dim=2) / MOVING).clamp(max=1)
        weights, choices = F.pad(moving, (1, 0), value=1.0), F.pad(named, (0, 0, 1, 0))[..., None, None]  # first: stay
        unlike = (velocities - choices).square().sum(2)
        chosen = torch.softmax(weights.log()[..., None, None] - unlike / (2 * ALIKE**2), dim=1)
        decided = (chosen[:, :, None] * choices).sum(1, keepdim=True)
        return torch.lerp(velocities, decided, moving.amax(dim=1).view(-1, 1, 1, 1, 1))

    def _camera(self, text: Tensor) -> Tensor:
        """The camera's M of pooled texts, (b, 3, 3), its last row zero."""
        return F.pad(self._told(text)[:, REGIONS:].transpose(1, 2), (0, 0, 0, 1))

    def _places(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Where the pixels (…, H, W) are, (2, H, W), from the picture's middle in units, and the middle itself."""
        y, x = (torch.arange(n, device=points.device) - (n - 1) / 2 for n in points.shape[-2:])
        places = torch.stack(torch.meshgrid(x, y, indexing="xy"))
        return places / self.unit, -places[:, :1, :1]


class _SecondLook(nn.Module):
    """A U-Net from half the picture's resolution down to the latents' cells, steered by the text at each level: a thing
    is told from its like by what is around it, and by what else could be meant. Untrained, it changes nothing."""

    def __init__(self, config, levels: int, *, operations=nn, **kw):
        super().__init__()
        parts = {"operations": operations, **kw}
        widths = [FINE + WIDER * level for level in range(levels + 1)]

        def res(channels):
            return ResBlock(channels, config.context_dim, channels, config.norm_groups, True, **parts)

        self.meant = operations.Linear(config.context_dim, config.context_dim, **kw)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for width, wider in pairwise(widths):
            enter = nn.Sequential(operations.Conv2d(width, wider, 3, stride=2, padding=1, **kw))
            leave = zero(nn.Sequential(operations.Conv2d(wider, 4 * width, 1, **kw), nn.PixelShuffle(2)))
            self.down.append(nn.ModuleList([enter, res(wider)]))
            self.up.insert(0, nn.ModuleList([leave, res(width)]))
        self.down[-1][0].append(SpatialTransformer(wider, wider // WIDER, config.norm_groups, **parts))

    def forward(self, h: Tensor, text: Tensor) -> Tensor:
        """h (b, FINE, H/2, W/2) and pooled texts (b, D) to the like of h."""
        meant, skips = self.meant(text), []
        for enter, block in self.down:
            skips.append(h)
            h = block(enter(h), meant)
        for leave, block in self.up:
            h = block(skips.pop() + leave(h), meant)
        return h


def _with_edges(points: Tensor) -> Tensor:
    """Points (b, 1, 4, H, W) with what the autoencoder blurs of a moving thing into its surroundings: pixels beside it
    go with it, it is in front, and neither it nor they are shown where it has been."""
    velocities, nearness, likeness = points[:, 0].split([2, 1, 1], dim=1)
    speed = velocities.norm(dim=1, keepdim=True)
    moving = (speed / MOVING).clamp(max=1)
    _, fastest = F.max_pool2d(speed, 3, stride=1, padding=1, return_indices=True)
    velocities = velocities.flatten(2).gather(2, fastest.flatten(2).expand(-1, 2, -1)).view_as(velocities)
    likeness = likeness - UNLIKE * F.max_pool2d(moving, 5, stride=1, padding=2)
    return torch.cat([velocities, nearness + NEARER * moving, likeness], dim=1)[:, None]


def _with_other(pictures: Tensor) -> Tensor:
    """(clips, k, C, …) to the same, or of two pictures each with the other behind it, (clips, 2, 2·C, …)."""
    return pictures if pictures.shape[1] == 1 else torch.cat([pictures, pictures.flip(1)], dim=2)


def _halved(maps: Tensor) -> Tensor:
    """(…, H, W) to (…, H/2, W/2)."""
    return maps.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2)).mean((-3, -1))


def _splat_clip(values: Tensor, places: Tensor) -> Tensor:
    """Values (b, 1 or t, k, C, H, W) at places (b, t, k, 2, H, W) to (b, t, C, H, W)."""
    values = values.expand(-1, places.shape[1], -1, -1, -1, -1)
    return splat(values.flatten(0, 1), places.flatten(0, 1)).unflatten(0, places.shape[:2])


def _seen(front: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of weighted pixels and of weights (b, t, C + 1, H, W), behind at half the resolution, to pixels and how
    well they are known, 0 to 1."""
    behind = F.interpolate(_fill(back.flatten(0, 1)), scale_factor=2, mode="bilinear").unflatten(0, back.shape[:2])
    pixels, weight = front[:, :, :-1], front[:, :, -1:]
    return (pixels + THIN * behind) / (weight + THIN), weight / (weight + 1)


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
            # Where a place is outside or no number, `where` keeps it out of the index and out of the sum.
            share = torch.where(inside, (1 - (x - column).abs()) * (1 - (y - row).abs()), 0)
            index = torch.where(inside, row * width + column, 0).long()
            out.scatter_add_(2, index[:, None].expand_as(values), values * share[:, None])
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
