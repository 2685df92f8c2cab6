"""`python -m minprune` is the `minprune` command."""

import sys

from minprune.cli import main

sys.exit(main())
