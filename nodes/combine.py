"""Video Combine: writes images as one video file, which contains the workflow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from comfy.cli_args import args
from comfy_api.latest import InputImpl, Types, io, ui
from torch import Tensor

from ..microcinema_core import video
from ..microcinema_core.errors import MicroCinemaError
from .display import show_text
from .schema import advanced, check_images, in_range, schema

FORMATS = {  # the suffix of the file, and the codec where it is not the default one of the suffix
    "mp4 (h264)": (".mp4", None), "webm (vp9)": (".webm", None), "webp (animated)": (".webp", None),
    "gif": (".gif", None), "png sequence": ("", None), "mp4 (h265, 10 bit)": (".mp4", "h265"),
    "mov (ProRes 422 HQ)": (".mov", None), "mkv (FFV1, lossless)": (".mkv", None),
}  # fmt: skip
NOT_PLAYED = list(FORMATS)[-3:]  # most browsers cannot play them
WITH_CRF = ["mp4 (h264)", "webm (vp9)", "mp4 (h265, 10 bit)"]


class VideoCombine(io.ComfyNode):
    """The node Video Combine (MicroCinema)."""

    @classmethod
    def define_schema(cls):
        """The description of the node, its inputs and its outputs."""
        return schema(
            node_id="MicroCinemaVideoCombine",
            display_name="Video Combine (MicroCinema)",
            description="Writes images as one video file and shows it. The workflow travels inside, where the format "
            "can hold it: drop the file on the canvas to get it back.",
            search_aliases=[
                "microcinema", "video combine", "save video", "export video", "images to video", "mp4", "webm", "gif",
                "animated webp", "prores", "ffv1", "h265", "10 bit",
            ],
            inputs=[
                io.Image.Input("images", tooltip="The frames, in order."),
                io.Float.Input("fps", default=8.0, min=0.01, max=1000.0, step=0.01, tooltip="Frames per second."),
                io.Combo.Input(
                    "format", options=list(FORMATS),
                    tooltip="A gif holds no workflow and 256 colours. The last three are for editing: most browsers do "
                    "not play them, and mkv gives no workflow back.",
                ),
                io.Int.Input(
                    "quality", default=80, min=0, max=100,
                    tooltip="More is better and larger. The encoder's CRF is 34 − 0.25·quality for h264 (80: 14), "
                    "38 − 0.25·quality for h265 (80: 18), 46 − 0.35·quality for vp9 (80: 18). Not for gif, png, ProRes "
                    "and FFV1.",
                ),
                io.Int.Input(
                    "loop_count", default=0, min=0, max=1000, tooltip="Of webp and gif; 0 plays for ever.",
                ),
                io.Boolean.Input("ping_pong", default=False, tooltip="Play forwards, then backwards."),
                io.String.Input(
                    "filename_prefix", default="MicroCinema", tooltip="May name folders, and hold %date:yyyy-MM-dd%.",
                ),
                io.Boolean.Input("save", default=True, tooltip="Off: a preview only, in the temporary folder."),
                io.Audio.Input(
                    "audio", optional=True,
                    tooltip="For mp4, webm, mov and mkv; it is cut where the pictures end.",
                ),
                advanced(io.Int.Input(
                    "crf", default=-1, min=-1, max=63, optional=True,
                    tooltip="The encoder's own scale, instead of quality: less is better and larger. h264 and h265 "
                    "take 0 to 51, vp9 0 to 63. -1: from quality.",
                )),
            ],
            outputs=[io.Video.Output(display_name="video")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    @in_range
    def execute(
        cls, images, fps, format, quality, loop_count, ping_pong, filename_prefix, save, audio=None, crf=-1
    ):  # fmt: skip
        """Write the file and return it as VIDEO. Raises MicroCinemaError for inputs that cannot be written."""
        images = check_images(images)
        suffix, codec = FORMATS[format]
        maximum = video.MAX_FPS.get(suffix, fps)
        if fps > maximum:
            raise MicroCinemaError(
                f"{format} can hold {maximum} frames per second, not {fps:g}: lower fps or take mp4."
            )
        height, width = images.shape[1:3]
        notes = []
        if suffix in video.EVEN and (height % 2 or width % 2):
            notes.append(f"{width}×{height} has an odd side; its last line is repeated.")
        sound = cls._sound(audio)
        if sound and suffix not in video.WITH_SOUND:
            notes.append(f"{format} holds no sound; it is left out.")
        if crf >= 0 and format not in WITH_CRF:
            notes.append(f"{format} has no CRF; it is left as it is.")
        kind = io.FolderType.output if save else io.FolderType.temp
        root = folder_paths.get_output_directory() if save else folder_paths.get_temp_directory()
        try:
            place = folder_paths.get_save_image_path(filename_prefix, root, width, height)
        except Exception as error:  # the host raises no narrower type, with a message of four lines
            raise MicroCinemaError(
                f"The filename_prefix {filename_prefix!r} names no place in the output folder: give a name, or folders "
                "and a name, inside of it."
            ) from error
        folder, name, counter, subfolder, _ = place
        path = Path(folder) / f"{name}_{counter:05}_{suffix}"

        order = list(range(len(images)))
        order += order[-2:0:-1] if ping_pong else []
        frames = cls._stream(images, order)
        if suffix:
            video.write_video(
                path, frames, fps, cls._graph(), codec=codec, quality=quality, crf=crf if crf >= 0 else None,
                loop=loop_count, audio=sound if suffix in video.WITH_SOUND else None,
            )  # fmt: skip
            results = [ui.SavedResult(path.name, subfolder, kind)]
        else:
            written = video.write_sequence(path, frames, cls._graph())
            results = [ui.SavedResult(file.name, str(Path(subfolder) / path.name), kind) for file in written]
        preview: dict[str, Any]
        if format in NOT_PLAYED:
            notes.append(f"{path.name}: written; browsers do not play it.")
            preview = {"files": results}  # for clients of the API; the canvas shows no player for this key
        else:
            preview = {"images": results}
            if suffix not in ("", ".gif"):
                preview["animated"] = (True,)
        if notes:
            show_text("\n".join(notes))
        images = images[order] if ping_pong else images  # a copy only where needed: clips are large
        components = Types.VideoComponents(images=images, audio=audio, frame_rate=Fraction(fps))
        return io.NodeOutput(InputImpl.VideoFromComponents(components), ui=preview)

    @staticmethod
    def _sound(audio) -> video.Audio | None:
        """The first sound of an AUDIO batch. Raises MicroCinemaError where its shape or its samples are invalid."""
        if audio is None:
            return None
        waveform, rate = audio.get("waveform"), audio.get("sample_rate")
        if getattr(waveform, "ndim", 0) != 3 or not isinstance(rate, int):
            raise MicroCinemaError(
                "The audio is none of (batch, channels, samples) with a whole sample rate: take it from Load Audio."
            )
        if not waveform.float().isfinite().all():
            raise MicroCinemaError("The audio holds NaN or infinite samples: check the node that made it.")
        return (waveform[0], rate) if waveform.numel() else None

    @staticmethod
    def _stream(images: Tensor, order: list[int]) -> Iterator[Tensor]:
        """Frames (3, h, w) in this order, with a progress bar, until the user interrupts the run."""
        bar = comfy.utils.ProgressBar(len(order))
        for index in order:
            comfy.model_management.throw_exception_if_processing_interrupted()
            yield images[index].movedim(-1, 0)
            bar.update(1)

    @classmethod
    def _graph(cls) -> dict[str, str]:
        """The metadata that the host writes to files, the prompt and the workflow; empty with --disable-metadata."""
        if args.disable_metadata:
            return {}
        graph = {"prompt": cls.hidden.prompt} if cls.hidden.prompt is not None else {}
        return {key: json.dumps(value) for key, value in (graph | (cls.hidden.extra_pnginfo or {})).items()}
