"""`python -m mixer_server` is `samix serve`."""

import sys

from mixer_server.cli import main

sys.exit(main())
