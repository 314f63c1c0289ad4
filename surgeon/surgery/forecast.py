"""What an apply will take, known before it writes: bytes, files, memory, room and about how long."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import torch

from surgeon.checkpoints.distributed_writing import CHUNK_BYTES, CHUNKS_UNDER_WAY
from surgeon.checkpoints.tensors import BLOCK_ELEMENTS
from surgeon.checkpoints.writing import BLOCKS_UNDER_WAY, Shard, Spec, shards_of
from surgeon.graph.places import op_name
from surgeon.models.stored import StoredModel
from surgeon.planning.plan import Plan
from surgeon.planning.transforms import Transform
from surgeon.rewriting.checkpoint import GrownCheckpoint
from surgeon.rewriting.noise import draws_whole
from surgeon.rewriting.weights import block_boxes, expand_box
from surgeon.running.parallel import side_by_side
from surgeon.surgery.result import Delivery
from surgeon.surgery.subject import Surgery
from surgeon.surgery.values import Values, values_of
from surgeon.verification.execution import ROWWISE
from surgeon.verification.native import CONVERTED_BYTES, WIDER, is_held_by_stock
from surgeon.verification.shelf import LARGE

TRIED_BLOCKS = 16
TRIED_WHOLE = 1 << 24  # elements of a tensor that is made at once to see how long that takes
TRIED_BYTES = 32 * 1024 * 1024  # written to the output's disk, to see how fast it is
SUNDRIES = 96 * 1024 * 1024  # what libraries load and keep once they run
WORK, EXACT = 4, 8  # bytes of an element in the arithmetic of growing, and in that of the proof
TEMPORARIES = 4  # of its size: the block, its shares, its noise, and what is written
NOISY = 7  # the same where noise is drawn for all of a tensor: drawn, centred, squared, levelled
HEAP = 3 / 2  # the C library keeps some of what was freed: up to a third was seen


@dataclass(frozen=True)
class Room:
    """The disk that an output will stand on: its bytes free, and its rate in bytes a second."""

    place: Path
    free: int
    rate: float


@dataclass(frozen=True)
class Forecast:
    """What an apply will take.

    `memory` is not exceeded beyond the interpreter, its libraries and the traced graphs. `room` is None where
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
        """About how long reading, growing and writing take, without the proof: the longer of the arithmetic
        and of the disk, as one goes on while the other does. Both are measured for a moment, on a machine
        that may be busy with other things then or later."""
        if self.room is None:
            return None
        return max(self.growing, (self.bytes_in + self.bytes_out) / self.room.rate)

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
        for bundle in grown.converted
    )
    shards = shards_of(list(specs.values()), delivery.shard_bytes)
    bytes_in = sum(entries[name].bytes for name in specs)
    chunk = min(CHUNK_BYTES, max((spec.bytes for spec in specs.values()), default=0))
    chunks = 0 if stored.checkpoint.saved is None else CHUNKS_UNDER_WAY * chunk
    stock = _stock_experts(stored, grown, specs)
    return _forecast(surgery.plan, shards, bytes_in, delivery, max(converted, default=0), chunks, stock)


def forecast_planned(surgery: Surgery, delivery: Delivery, dtype: torch.dtype) -> Forecast:
    """The forecast for weights that are not there, as if all were of `dtype`."""
    plan, saved = surgery.plan, surgery.subject.module.state_dict()
    held = {n: t for n, t in plan.transforms.items() if n in saved and plan.aliases.get(n, n) == n}
    written = delivery.dtype or dtype
    shards = shards_of([Spec(n, t.target_shape, written) for n, t in held.items()], delivery.shard_bytes)
    bytes_in = sum(prod(t.source_shape) for t in held.values()) * dtype.itemsize
    return _forecast(plan, shards, bytes_in, delivery)


def _stock_experts(stored: StoredModel, grown: GrownCheckpoint, specs: Mapping[str, Spec]) -> int:
    """Bytes of what stock transformers holds otherwise than it is stored: all of it, source or grown, the
    source once more in a wider dtype, and the largest once more while it is converted; or one expert."""
    bundles = stored.layout.bundles
    after = [sum(specs[name].bytes for name in bundle.stored) for bundle in bundles]
    if not is_held_by_stock(stored) or sum(after) > CONVERTED_BYTES:
        each = [grown.transforms[name].target_shape[1:] for bundle in bundles for name in bundle.held]
        return max((3 * prod(shape) * EXACT for shape in each), default=0)
    before = [sum(stored.checkpoint.entries[name].bytes for name in bundle.stored) for bundle in bundles]
    return max(sum(after) + max(after, default=0), 3 * sum(before) + max(before, default=0))


def _forecast(
    plan: Plan,
    shards: Sequence[Shard],
    bytes_in: int,
    delivery: Delivery,
    bundle: int = 0,
    chunks: int = 0,
    stock: int = 0,
) -> Forecast:
    """`bundle`: bytes of the largest one that is converted whole, source and grown, as held and as stored;
    `chunks`: of what is put together before it is written; `stock`: of experts as stock holds them."""
    total = sum(shard.bytes for shard in shards)
    taken = [_writing(plan, bundle) + chunks]
    if delivery.verify != "none":
        values = values_of(plan)
        taken.append(_proving(plan, bundle, values))
        taken.append(_comparing(plan, shards, values) + stock if delivery.verify == "full" else 0)
    memory = SUNDRIES + max(taken)
    if delivery.out is None:
        return Forecast(bytes_in, total, len(shards), memory)
    return Forecast(bytes_in, total, len(shards), memory, room_at(delivery.out), _growing(plan))


def _growing(plan: Plan) -> float:
    """Seconds of all arithmetic on all threads, after a few blocks of the largest tensor that changes, or
    after the smallest of those whose noise is drawn for all of it; of tensors with noise where there are any,
    which takes ten times as long as all else."""
    noisy = [t for t in plan.transforms.values() if t.noise is not None]
    changing = noisy or [t for t in plan.transforms.values() if t.changes]
    whole = [t for t in changing if draws_whole(t)]
    by_rows = [t for t in changing if not draws_whole(t)]
    seconds = 0.0
    for several, tried in (
        (by_rows, max(by_rows, key=lambda t: prod(t.target_shape), default=None)),
        (whole, min(whole, key=lambda t: prod(t.target_shape), default=None)),
    ):
        if tried is None or (several is whole and prod(tried.target_shape) > TRIED_WHOLE):
            continue
        source = torch.zeros((), dtype=torch.float32).expand(tried.source_shape)
        work = partial(expand_box, source, tried, dtype=torch.bfloat16)
        start = time.perf_counter()
        blocks = side_by_side(work, islice(block_boxes(tried), TRIED_BLOCKS), torch.device("cpu"))
        made = sum(block.numel() for block in blocks)
        each = (time.perf_counter() - start) / max(1, made)
        seconds += each * sum(prod(t.target_shape) for t in several)
    return seconds


def _writing(plan: Plan, bundle: int) -> int:
    """Blocks in work, waiting and being written; or one tensor whose noise can only be drawn whole; or what
    is at one position of the first of three axes, which may be stored for itself (an expert)."""
    threads = torch.get_num_threads()
    block = min(BLOCK_ELEMENTS, max((prod(t.target_shape) for t in plan.transforms.values()), default=0))
    blocks = (TEMPORARIES * threads + 2 * threads + BLOCKS_UNDER_WAY) * block * WORK
    whole = [_made_at_once(t, 0, NOISY) for t in plan.transforms.values() if draws_whole(t)]
    parts = [_made_at_once(t, 1) for t in plan.transforms.values() if len(t.target_shape) > 2]
    return max(
        blocks, int(HEAP * WORK * max(whole, default=0)), WORK * threads * max(parts, default=0), bundle
    )


def _made_at_once(transform: Transform, first: int, copies: int = TEMPORARIES) -> int:
    """Elements of a tensor, or from its axis `first` on, read and made at once."""
    return prod(transform.source_shape[first:]) + copies * prod(transform.target_shape[first:])


def _proving(plan: Plan, bundle: int, values: Values) -> int:
    """Both graphs in float64: values, and what is read to make them, the largest tensor that an op reads
    whole, source and grown, or blocks of rows."""
    by_rows, exact = _read_by_rows(plan), bundle
    for name, transform in plan.transforms.items():
        # Of what is read by rows one position of the first axis is made whole where noise asks for that.
        first = 1 if transform.noise and not transform.is_parted else None
        first = 0 if name not in by_rows or draws_whole(transform) else first
        if first is not None and (not first or len(transform.axes) > 2):
            copies = NOISY if transform.noise else TEMPORARIES
            exact = max(exact, _made_at_once(transform, first, copies) * EXACT)
    blocks = (TEMPORARIES + 2) * torch.get_num_threads() * BLOCK_ELEMENTS * EXACT
    return int(HEAP * (values.exact + exact + blocks))


def _comparing(plan: Plan, shards: Sequence[Shard], values: Values) -> int:
    """Stock transformers: values and the largest tensor in the checkpoint's dtype and in a wider one, unless
    it is read in blocks, each laid out once more for its product; then what was given, compared."""
    specs = [spec for shard in shards for spec in shard.specs if spec.dtype in WIDER]
    wide = max((WIDER[spec.dtype].itemsize for spec in specs), default=EXACT)
    own = max((spec.dtype.itemsize for spec in specs), default=EXACT)
    by_rows = _read_by_rows(plan)
    whole = [prod(t.target_shape) for name, t in plan.transforms.items() if name not in by_rows]
    block = min(LARGE, max((prod(spec.shape) * wide for spec in specs), default=0))
    read = max(int(HEAP * (2 * block + block * own // wide)), max(whole, default=0) * (WORK + wide))
    running = wide * values.stock + (own + wide) * values.given + read
    return max(running, (2 * own + wide + EXACT) * values.given)


def _read_by_rows(plan: Plan) -> frozenset[str]:
    """The parameters that no op reads whole."""
    captured = plan.anatomy.captured
    whole = {
        captured.parameters.get(used.name)
        for node in captured.nodes
        if node.op != "placeholder" and op_name(node) not in ROWWISE
        for used in node.all_input_nodes
    }
    return frozenset(name for name in captured.parameters.values() if name not in whole)


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
