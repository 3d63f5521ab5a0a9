"""Runnable experiments: parse, call the library, show. `python -m experiments.NAME --help`."""

import os

# Before torch is loaded: its threads otherwise spin while they wait for one another, and on a
# machine with anything else to do that costs several times the work itself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
