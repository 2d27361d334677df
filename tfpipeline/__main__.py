"""`python -m tfpipeline` is the command `tfpipeline`."""

import sys

from tfpipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())
