"""``python -m lightning_adam_mini``: look at models from the command line."""

import sys

from lightning_adam_mini.cli.main import main

sys.exit(main())
