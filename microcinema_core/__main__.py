"""`python -m microcinema_core` is the command `microcinema`."""

import sys

from .cli import main

sys.exit(main())
