"""``python -m spkd`` is the command line."""

import sys

from spkd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
