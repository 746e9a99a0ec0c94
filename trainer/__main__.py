"""What `torchrun -m trainer` starts."""

import sys

from trainer.cli import main

sys.exit(main())
