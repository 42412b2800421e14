"""The networks."""

from .appearance import Condition
from .parameters import parameter_table
from .unet import MicroCinemaUNet, SpatialUNet

__all__ = ["Condition", "MicroCinemaUNet", "SpatialUNet", "parameter_table"]
