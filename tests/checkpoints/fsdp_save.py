"""Train a model for a step under FSDP2 and save it with its optimizer: ``fsdp_save.py PLAIN FOLDER TRAINED``
under torchrun; what the training made of PLAIN is saved as a plain model in TRAINED, by the first rank."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM


def main(plain: str, folder: str, trained: str) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = AutoModelForCausalLM.from_pretrained(plain)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.arange(12).reshape(2, 6) + 4 + dist.get_rank()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder)
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        shutil.copy(Path(plain) / "config.json", folder)
        AutoModelForCausalLM.from_pretrained(plain).save_pretrained(trained, state_dict=whole)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
