"""The nodes for ComfyUI, which is called the host here: schemas, conversion of types, progress and interrupts.

All computation is in `microcinema_core/`, which is called the core.
"""

from comfy_api.latest import ComfyExtension, io

from ..microcinema_core.errors import MicroCinemaError
from .combine import VideoCombine
from .example import provide_example
from .interpolate import Interpolate
from .loader import Loader
from .motion import MotionAmplitude, MotionReport
from .prior import PriorLatent
from .prior_any import PriorAnyModel
from .sampler import EulerSampler
from .sweep import SweepGrid
from .video_noise import VideoNoise

# The host's page shows the module and the class of an error before its message.
for error in (MicroCinemaError, *MicroCinemaError.__subclasses__()):
    error.__module__, error.__qualname__ = "builtins", "MicroCinema"


class MicroCinema(ComfyExtension):
    """The nodes of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The classes of all nodes."""
        return [
            Loader, PriorLatent, EulerSampler, Interpolate, VideoCombine,
            PriorAnyModel, MotionAmplitude, MotionReport, SweepGrid, VideoNoise,
        ]  # fmt: skip


async def comfy_entrypoint() -> MicroCinema:
    """Called by the host when it loads the pack. Also provides the example picture of the templates."""
    provide_example()
    return MicroCinema()
