"""Activations of many scenes on disk: written in one go or many, read without loading them.

    store = write_activations(model, scenes, ["decoder.0.hook_action_vector[query=0]"], "acts")
    store["decoder.0.hook_action_vector[query=0]"][:100]

A store is a folder of safetensors shards, a JSON manifest, and a list of finished shards with their
checksums. What it costs by site, before it is written: `store_bytes`, `python -m actlens.store`.
"""

from actlens.store.errors import StoreError as StoreError
from actlens.store.origin import weights_sha256 as weights_sha256
from actlens.store.reading import ActivationStore as ActivationStore
from actlens.store.reading import open_activations as open_activations
from actlens.store.sizes import scene_bytes as scene_bytes
from actlens.store.sizes import store_bytes as store_bytes
from actlens.store.verifying import Damage as Damage
from actlens.store.verifying import Fault as Fault
from actlens.store.verifying import verify as verify
from actlens.store.view import StoredActivation as StoredActivation
from actlens.store.writing import rebuild_shard as rebuild_shard
from actlens.store.writing import write_activations as write_activations
