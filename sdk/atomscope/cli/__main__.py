"""`python -m atomscope.cli`, the same as `atomscope`."""

import sys

from atomscope.cli import main

sys.exit(main())
