"""``python -m experiments.hessian``."""

import sys

from experiments.hessian.command import main

if __name__ == "__main__":
    sys.exit(main())
