"""``python -m freeloc``."""

import sys

from freeloc.cli import main

if __name__ == "__main__":
    sys.exit(main())
