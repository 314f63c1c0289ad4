"""Save a model folder's weights as two ranks would: ``sharded_save.py PLAIN FOLDER`` under torchrun. Matrices
are sharded along their first or second axis, unevenly, vectors are on both ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor


def main(plain: str, folder: str) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    state = {}
    for number, (name, tensor) in enumerate(sorted(load_file(Path(plain) / "model.safetensors").items())):
        placement = Shard(number % 2) if tensor.ndim == 2 else Replicate()
        state[name] = distribute_tensor(tensor, mesh, [placement])
    dcp.save({"model": state}, checkpoint_id=folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
