"""Motion Amplitude, a slider from calm to lively, and Motion Report, which measures what a clip does."""

from __future__ import annotations

import json

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image, ImageDraw

from ..microcinema_core.metrics.clip_report import ClipReport, clip_report
from .display import show_text
from .schema import PLACES, check_images, frame_at, in_range, schema

CALM, LIVELY = 0.06, -0.02  # γ at the ends of the slider: the range of the supplement's figure 6
PLOT = (640, 320)  # pixels


class MotionAmplitude(io.ComfyNode):
    """The node Motion Amplitude."""

    @classmethod
    def define_schema(cls):
        """The description of the node, its inputs and its outputs."""
        return schema(
            node_id="MicroCinemaMotionAmplitude",
            display_name="Motion Amplitude",
            description="One slider from calm to lively, for the noise prior: wire gamma into Appearance Noise Prior "
            "Latent, or strength into Appearance Noise Prior (any model).",
            search_aliases=["motion strength", "motion bucket", "calm", "lively"],
            inputs=[
                io.Float.Input(
                    "motion", default=0.0, min=-1.0, max=1.0, step=0.05, display_mode=io.NumberDisplay.slider,
                    tooltip="−1 is calm, 0 the paper's choice, 1 lively. MicroCinema's own models were trained with "
                    "the prior: there it corrects what the start lacks. Other models it only steers.",
                ),
                io.Float.Input(
                    "lambda_", display_name="lambda", default=0.0, min=0.0, max=1.0, step=0.005,
                    tooltip="λ of the model's training: 0 for models of others, 0.03 for MicroCinema's.",
                ),
            ],
            outputs=[
                io.Float.Output(display_name="gamma", tooltip="γ, from 0.06 (calm) to −0.02 (lively)."),
                io.Float.Output(display_name="strength", tooltip="λ+γ."),
            ],
        )  # fmt: skip

    @classmethod
    @in_range
    def execute(cls, motion, lambda_):
        """γ and λ+γ for a place of the slider."""
        gamma = round((CALM + LIVELY) / 2 + motion * (LIVELY - CALM) / 2, 6)
        show_text(f"γ {gamma:g}, strength {lambda_ + gamma:g}")
        return io.NodeOutput(gamma, lambda_ + gamma)


class MotionReport(io.ComfyNode):
    """The node Motion Report."""

    @classmethod
    def define_schema(cls):
        """The description of the node, its inputs and its outputs."""
        return schema(
            node_id="MicroCinemaMotionReport",
            display_name="Motion Report",
            description="Measures a clip: motion in pixels a frame, fidelity to the picture, consistency, colour "
            "drift. Motion and consistency together, because a clip that stands still wins every consistency.",
            search_aliases=["optical flow", "measure motion", "video metrics", "psnr", "ssim"],
            inputs=[
                io.Image.Input("images", tooltip="The frames of the clip, two or more."),
                io.Combo.Input("given", options=list(PLACES), default="first", tooltip="The frame that shows the "
                               "picture, and from which the colours drift."),
                io.Image.Input("picture", optional=True, tooltip="The picture that the given frame is to show; it is "
                               "cut and resized to the clip. Without it there is no fidelity."),
            ],
            outputs=[
                io.String.Output(display_name="report"),
                io.String.Output(display_name="json", tooltip="All figures, also those of every step."),
                io.Image.Output(display_name="plot", tooltip="Motion and consistency over the clip."),
                io.Float.Output(display_name="motion", tooltip="Pixels a frame."),
            ],
        )  # fmt: skip

    @classmethod
    @in_range
    def execute(cls, images, given, picture=None):
        """Return the report as text and JSON, its plot, and the motion. Raises MicroCinemaError for one frame alone."""
        frames = check_images(images, minimum=2).movedim(-1, 1)
        if picture is not None:
            picture = check_images(picture)[0].movedim(-1, 0)
        report = clip_report(frames, picture, frame_at(given, len(frames)))
        show_text(report.words())
        plot = torch.from_numpy(np.array(_plot(report))).float()[None] / 255
        return io.NodeOutput(report.words(), json.dumps(report.to_json(), indent=1), plot, report.motion)


def _plot(report: ClipReport) -> Image.Image:
    """Motion and consistency of each step, as two curves, each with its own scale."""
    width, height = PLOT
    image = Image.new("RGB", PLOT, "white")
    draw = ImageDraw.Draw(image)
    for key, colour, unit, top in (("motion", "#1f77b4", "px a frame", 24), ("consistency", "#d62728", "dB", 184)):
        values = [step[key] for step in report.steps]
        high = max(max(values), 1e-3)
        across = (width - 64) / len(values)
        points = [(48 + across * (i + 0.5), top + 112 - 100 * value / high) for i, value in enumerate(values)]
        draw.line([(48, top), (48, top + 112), (width - 16, top + 112)], fill="#888888")
        draw.text((52, top - 14), f"{key}: 0 to {high:.2f} {unit}", fill=colour)
        draw.line(points, fill=colour, width=2)
        for x, y in points:
            draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=colour)
    return image
