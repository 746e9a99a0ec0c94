"""`python -m samix` is the `samix` command."""

import sys

from samix.cli import main

sys.exit(main())
