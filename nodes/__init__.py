"""The ComfyUI side of the pack: schemas, conversion between host types and core types, progress and interrupts.

It holds no maths; that is `microcinema_core/`.
"""

from comfy_api.latest import ComfyExtension, io

from ..microcinema_core.errors import MicroCinemaError
from .combine import VideoCombine
from .example import provide_example
from .interpolate import Interpolate
from .loader import Loader
from .prior import PriorLatent
from .sampler import EulerSampler

for error in (MicroCinemaError, *MicroCinemaError.__subclasses__()):  # the host's page writes both before a message,
    error.__module__, error.__qualname__ = "builtins", "MicroCinema"  # which would be the pack's path and a class


class MicroCinema(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [Loader, PriorLatent, EulerSampler, Interpolate, VideoCombine]


async def comfy_entrypoint() -> MicroCinema:
    provide_example()
    return MicroCinema()
