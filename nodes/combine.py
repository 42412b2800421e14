"""Video Combine: images to one video file, with the workflow inside."""

from __future__ import annotations

import json
import logging
from fractions import Fraction
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
from comfy.cli_args import args
from comfy_api.latest import InputImpl, Types, io, ui

from ..microcinema_core import video
from ..microcinema_core.errors import MicroCinemaError
from .schema import check_images, in_range, schema

FORMATS = {
    "mp4 (h264)": ".mp4", "webm (vp9)": ".webm", "webp (animated)": ".webp", "gif": ".gif", "png sequence": "",
}  # fmt: skip


class VideoCombine(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MicroCinemaVideoCombine",
            display_name="Video Combine",
            description="Writes images as one video file and shows it. The workflow travels inside, where the format "
            "can hold it: drop the file on the canvas to get it back.",
            search_aliases=["save video", "mp4", "webm", "gif", "animated webp", "export video"],
            inputs=[
                io.Image.Input("images", tooltip="The frames, in order."),
                io.Float.Input("fps", default=8.0, min=0.01, max=1000.0, step=0.01, tooltip="Frames per second."),
                io.Combo.Input("format", options=list(FORMATS), tooltip="A gif holds no workflow and 256 colours."),
                io.Int.Input(
                    "quality", default=80, min=0, max=100, tooltip="More is better and larger. Not for gif and png.",
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
                    "audio", optional=True, tooltip="For mp4 and webm; it is cut where the pictures end.",
                ),
            ],
            outputs=[io.Video.Output(display_name="video")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    @in_range
    def execute(cls, images, fps, format, quality, loop_count, ping_pong, filename_prefix, save, audio=None):
        images = check_images(images)
        suffix = FORMATS[format]
        most = video.MOST_FPS.get(suffix, fps)
        if fps > most:
            raise MicroCinemaError(f"{format} can hold {most} frames per second, not {fps:g}: lower fps or take mp4.")
        height, width = images.shape[1:3]
        if suffix in video.CODECS and (height % 2 or width % 2):
            logging.info("MicroCinema: %dx%d has an odd side; its last line is repeated.", width, height)
        kind = io.FolderType.output if save else io.FolderType.temp
        root = folder_paths.get_output_directory() if save else folder_paths.get_temp_directory()
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(filename_prefix, root, width, height)
        path = Path(folder) / f"{name}_{counter:05}_{suffix}"

        order = list(range(len(images)))
        order += order[-2:0:-1] if ping_pong else []
        frames = cls._stream(images, order)
        if suffix:
            sound = None
            if audio is not None and suffix in video.CODECS:
                sound = (audio["waveform"][0], audio["sample_rate"])
            video.write_video(path, frames, fps, cls._graph(), quality=quality, loop=loop_count, audio=sound)
            shown = [ui.SavedResult(path.name, subfolder, kind)]
        else:
            written = video.write_sequence(path, frames, cls._graph())
            shown = [ui.SavedResult(file.name, str(Path(subfolder) / path.name), kind) for file in written]
        preview = {"images": shown}
        if suffix not in ("", ".gif"):
            preview["animated"] = (True,)
        components = Types.VideoComponents(images=images[order], audio=audio, frame_rate=Fraction(fps))
        return io.NodeOutput(InputImpl.VideoFromComponents(components), ui=preview)

    @staticmethod
    def _stream(images, order):
        bar = comfy.utils.ProgressBar(len(order))
        for index in order:
            comfy.model_management.throw_exception_if_processing_interrupted()
            yield images[index].movedim(-1, 0)
            bar.update(1)

    @classmethod
    def _graph(cls) -> dict[str, str]:
        """The prompt and the workflow, as the host writes them, unless it is told not to."""
        if args.disable_metadata:
            return {}
        graph = {"prompt": cls.hidden.prompt} if cls.hidden.prompt is not None else {}
        return {key: json.dumps(value) for key, value in (graph | (cls.hidden.extra_pnginfo or {})).items()}
