"""``python -m lsfast``, the same as the command ``lsfast``."""

import sys

from lsfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
