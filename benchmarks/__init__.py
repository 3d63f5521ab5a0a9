"""Ratios against peers and limits, measured in one run. `python -m benchmarks.NAME --help`."""

import os

# As the experiments do, and for the same reason.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
