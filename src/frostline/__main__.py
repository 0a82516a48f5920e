"""``python -m frostline``, for torchrun."""

import sys

from frostline.cli.main import main

sys.exit(main())
