"""What an apply will take, known before it writes: bytes, files, memory, room and about how long."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import torch

from surgeon.checkpoints.distributed_writing import CHUNK_BYTES, CHUNKS_UNDER_WAY
from surgeon.checkpoints.tensors import BLOCK_ELEMENTS, row_blocks
from surgeon.checkpoints.writing import BLOCKS_UNDER_WAY, Shard, Spec, shards_of
from surgeon.graph.places import op_name
from surgeon.models.stored import StoredModel
from surgeon.planning.plan import Plan
from surgeon.rewriting.checkpoint import GrownCheckpoint
from surgeon.rewriting.noise import draws_whole
from surgeon.rewriting.weights import expand
from surgeon.surgery.result import Delivery
from surgeon.surgery.subject import Surgery
from surgeon.verification.execution import ROWWISE

TRIED_BLOCKS = 16
TRIED_BYTES = 32 * 1024 * 1024  # written to the output's disk, to see how fast it is
WORK, EXACT = 4, 8  # bytes of an element in the arithmetic of growing, and in that of the proof
TEMPORARIES = 4  # of its size: the block, its shares, its noise, and what is written


@dataclass(frozen=True)
class Room:
    """The disk that an output will stand on: its bytes free, and its rate in bytes a second."""

    place: Path
    free: int
    rate: float


@dataclass(frozen=True)
class Forecast:
    """What an apply will take.

    `memory` is the peak beyond the interpreter, its libraries and the traced graphs. `room` is None where
    no output is named.
    """

    bytes_in: int
    bytes_out: int
    shards: int
    memory: int
    room: Room | None = None
    growing: float = 0.0  # seconds of arithmetic, after a few blocks of the largest tensor

    @property
    def seconds(self) -> float | None:
        """About how long reading, growing and writing take, without the proof."""
        if self.room is None:
            return None
        return self.growing + (self.bytes_in + self.bytes_out) / self.room.rate

    def as_dict(self) -> dict[str, Any]:
        """The forecast as JSON values."""
        room = None if self.room is None else asdict(self.room) | {"place": str(self.room.place)}
        return asdict(self) | {"room": room, "writing_seconds": self.seconds}


def forecast_stored(surgery: Surgery, stored: StoredModel, delivery: Delivery) -> Forecast:
    """The forecast for weights that are there: of the files' headers, and the disk of `delivery.out`."""
    assert surgery.module is not None
    layout = stored.layout.of(surgery.module)
    grown = GrownCheckpoint(stored, surgery.plan.transforms, layout, delivery.dtype, delivery.device)
    specs = {spec.name: spec for spec in grown.specs()}
    entries = stored.checkpoint.entries
    converted = (
        2 * sum(entries[name].bytes + specs[name].bytes for name in bundle.stored)
        for bundle in layout.bundles
    )
    shards = shards_of(list(specs.values()), delivery.shard_bytes)
    bytes_in = sum(entries[name].bytes for name in specs)
    chunk = min(CHUNK_BYTES, max((spec.bytes for spec in specs.values()), default=0))
    chunks = 0 if stored.checkpoint.saved is None else CHUNKS_UNDER_WAY * chunk
    return _forecast(surgery.plan, shards, bytes_in, max(converted, default=0), delivery.out, chunks)


def forecast_planned(surgery: Surgery, delivery: Delivery, dtype: torch.dtype) -> Forecast:
    """The forecast for weights that are not there, as if all were of `dtype`."""
    plan, saved = surgery.plan, surgery.subject.module.state_dict()
    held = {n: t for n, t in plan.transforms.items() if n in saved and plan.aliases.get(n, n) == n}
    written = delivery.dtype or dtype
    shards = shards_of([Spec(n, t.target_shape, written) for n, t in held.items()], delivery.shard_bytes)
    bytes_in = sum(prod(t.source_shape) for t in held.values()) * dtype.itemsize
    return _forecast(plan, shards, bytes_in, 0, delivery.out)


def _forecast(
    plan: Plan, shards: Sequence[Shard], bytes_in: int, bundle: int, out: Path | None, chunks: int = 0
) -> Forecast:
    """`bundle`: bytes of the largest one that is converted whole, source and grown, as held and as stored;
    `chunks`: of what is put together before it is written."""
    total = sum(shard.bytes for shard in shards)
    memory = max(_writing(plan, bundle) + chunks, _proving(plan, shards))
    if out is None:
        return Forecast(bytes_in, total, len(shards), memory)
    return Forecast(bytes_in, total, len(shards), memory, room_at(out), _growing(plan))


def _growing(plan: Plan) -> float:
    """Seconds of all arithmetic on all threads, after a few blocks of the largest tensor that changes; of
    those with noise where there are any, which takes ten times as long as all else."""
    noisy = [t for t in plan.transforms.values() if t.noise is not None]
    changing = noisy or [t for t in plan.transforms.values() if t.changes]
    largest = max(changing, key=lambda t: (not draws_whole(t), prod(t.target_shape)), default=None)
    if largest is None or draws_whole(largest):
        return 0.0
    source = torch.zeros((), dtype=torch.float32).expand(largest.source_shape)
    start, made = time.perf_counter(), 0
    for rows in islice(row_blocks(largest.target_shape), TRIED_BLOCKS):
        made += expand(source, largest, torch.bfloat16, rows).numel()
    each = (time.perf_counter() - start) / max(1, made) / torch.get_num_threads()
    return each * sum(prod(t.target_shape) for t in changing)


def _writing(plan: Plan, bundle: int) -> int:
    """Blocks in work, waiting and being written; or one tensor whose noise can only be drawn whole."""
    threads = torch.get_num_threads()
    block = min(BLOCK_ELEMENTS, max((prod(t.target_shape) for t in plan.transforms.values()), default=0))
    blocks = (TEMPORARIES * threads + 2 * threads + BLOCKS_UNDER_WAY) * block * WORK
    whole = [prod(t.target_shape) for t in plan.transforms.values() if draws_whole(t)]
    source = max((prod(t.source_shape) for t in plan.transforms.values()), default=0) * WORK
    return source + max(blocks, TEMPORARIES * WORK * max(whole, default=0), bundle)


def _proving(plan: Plan, shards: Sequence[Shard]) -> int:
    """The largest tensor as stock transformers holds it, in its own dtype and in a wider one; or the
    largest that an op reads whole in float64, source and grown."""
    stock = max((2 * prod(spec.shape) * WORK for shard in shards for spec in shard.specs), default=0)
    exact = 0
    captured = plan.anatomy.captured
    for node in captured.nodes:
        if node.op == "placeholder" or op_name(node) in ROWWISE:
            continue
        for used in node.all_input_nodes:
            transform = plan.transforms.get(captured.parameters.get(used.name, ""))
            if transform is not None:
                both = prod(transform.source_shape) + prod(transform.target_shape)
                exact = max(exact, both * EXACT)
    return max(stock, exact)


def room_at(out: Path) -> Room:
    """The disk under `out`, its rate seen by writing a small file there, to be read no more. Raises
    OSError where nothing can be written."""
    place = Path(os.path.abspath(out)).parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    data = memoryview(random.Random(0).randbytes(min(TRIED_BYTES, free // 2)))
    with tempfile.TemporaryFile(dir=place, buffering=0) as file:
        start = time.perf_counter()
        written = 0
        while written < len(data):
            written += file.write(data[written:])
        os.fsync(file.fileno())
        rate = max(1, len(data)) / (time.perf_counter() - start)
    return Room(place, free, rate)
