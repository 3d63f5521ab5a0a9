"""Large work in independent units that survives being killed, on one machine or many.

A `Plan` names what is asked and the units; `begin` gives its folder; `complete` computes what the
folder lacks with an engine; `read_all` gives the results in the plan's order, bit for bit the same
whatever engine, order, shard or restart made them.
"""

from actlens.shards.engines import Dask, Engine, Processes, Threads
from actlens.shards.errors import RunError
from actlens.shards.folder import Run, Stored, begin, open_run, read_all, stored
from actlens.shards.keys import key_of, source_hash
from actlens.shards.plan import Plan, Shard, Unit
from actlens.shards.records import decode, encode, from_tree, to_tree
from actlens.shards.work import Progress, complete

__all__ = [
    "Dask",
    "Engine",
    "Plan",
    "Processes",
    "Progress",
    "Run",
    "RunError",
    "Shard",
    "Stored",
    "Threads",
    "Unit",
    "begin",
    "complete",
    "decode",
    "encode",
    "from_tree",
    "key_of",
    "open_run",
    "read_all",
    "source_hash",
    "stored",
    "to_tree",
]
