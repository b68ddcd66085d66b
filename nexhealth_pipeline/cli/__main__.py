"""`python -m nexhealth_pipeline.cli`: the `nexhealth` command where its script may not be on the path."""

import sys

from nexhealth_pipeline.cli.app import main

sys.exit(main())
