"""`python -m minprune` is the `minprune` command."""

import sys

from minprune.cli.main import main

sys.exit(main())
