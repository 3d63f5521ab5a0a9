"""What made a store's activations: the model's present weights, and what else decides bits."""

import hashlib
import json

import torch

from actlens.model.act import HookedACT
from actlens.store.errors import StoreError
from actlens.store.shard_file import bytes_of
from actlens.text import listed


def require_plain(model: HookedACT) -> None:
    """Refuse a model whose activations its weights alone do not say."""
    if model.training:
        raise StoreError(
            "The model is in training mode, where dropout is random: put it in eval mode."
        )
    if hooked := model.list_hooks():
        raise StoreError(
            f"The model has hooks on {listed(hooked)}, which the store could not tell of: remove "
            "them (reset_hooks)."
        )


def environment(model: HookedACT) -> dict[str, str]:
    """What the last bits of an activation depend on besides weights, scenes and batch size."""
    weight = model.action_head.weight
    where = weight.device
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else where.type,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "matmul": torch.get_float32_matmul_precision(),
        "fused attention": str(model.fused_attention),
    }


def weights_sha256(model: HookedACT) -> str:
    """The SHA-256 of the model's present weights and normalisation statistics."""
    digest = hashlib.sha256()
    normalizer = model.normalizer
    said = [list(normalizer.features), normalizer.modes, normalizer.offsets]
    digest.update(json.dumps(said).encode())
    tensors = model.state_dict() | {f"normalizer.{k}": v for k, v in normalizer.named_buffers()}
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(bytes_of(value))
    return digest.hexdigest()
