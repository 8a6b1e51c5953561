"""`python -m edge_app` is the `edge-app` command."""

import sys

from edge_app.cli import main

sys.exit(main())
