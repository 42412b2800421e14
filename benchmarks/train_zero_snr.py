"""`microcinema train` on the schedule that ends in pure noise, for the table *Terminal noise* of docs/evidence.md:

    python benchmarks/train_zero_snr.py configs/evidence.toml --out FOLDER --set model.override.parameterization=v

The model file describes an ordinary model of v: nothing but benchmarks/figures.py samples it on this schedule.
"""

from __future__ import annotations

import sys

from figures import ZeroTerminalSnr

from microcinema_core import cli
from microcinema_core.training import objective

if __name__ == "__main__":
    objective.NoiseSchedule = ZeroTerminalSnr
    sys.exit(cli.main(["train", *sys.argv[1:]]))
