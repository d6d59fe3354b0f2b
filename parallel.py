"""Many processes: their start, FSDP2 over the model, checkpoints that are complete or invisible, and metrics.

Everything here works in one process too, where it does nothing. Checkpoints are torch's distributed ones in safetensors files
(nothing is ever unpickled), written under another name, hashed, then renamed: a kill leaves the last good one untouched.
"""

import fcntl
import hashlib
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

import cfm_head
import qwen
import siglip
import vae
from cheers import Cheers, best_device, read_json, write_json
from data import Step
from plan import PEAKS

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # torchrun sets them
BLOCKS = (qwen.Layer, siglip.Layer, cfm_head.Block, vae.ResnetBlock)


def start_process() -> torch.device:
    device = best_device()
    if device.type == "cuda" and WORLD > 1:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if WORLD > 1:  # counts and flags travel on the CPU, so that no GPU is waited for
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    return device


def lock(out: Path) -> TextIO:
    """A folder is this process's alone while the result is open. Raises ValueError when another process has it."""
    file = open(out / ".lock", "w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
    except (BlockingIOError, PermissionError):
        raise ValueError(f"another run is writing to {out}; wait until it has ended, or choose another --out") from None
    except OSError:  # a file system without locks
        pass
    return file


def total(values: Tensor) -> Tensor:
    """The sum over all processes of a tensor on the CPU."""
    if WORLD > 1:
        dist.all_reduce(values)
    return values


def shared(function: Callable):
    """Process 0 calls the function -> its result, in every process."""
    result = [function() if RANK == 0 else None]
    if WORLD > 1:
        dist.broadcast_object_list(result)
    return result[0]


def say(sentence: str) -> None:
    if RANK == 0:
        print(sentence, file=sys.stderr, flush=True)


def trained_blocks(model: Cheers) -> list[nn.Module]:
    frozen = set(model.vae.modules())
    return [module for module in model.modules() if isinstance(module, BLOCKS) and module not in frozen]


def shard(model: Cheers, device: torch.device, dtype: torch.dtype, replicas: int) -> None:
    """FSDP2: weights, gradients and optimizer are spread over the processes (of each replica), gathered block by block. They
    stay in float32, `dtype` is what is gathered. The frozen VAE is not spread."""
    shape, names = ((replicas, WORLD // replicas), ("replicate", "shard")) if replicas > 1 else ((WORLD,), ("shard",))
    policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    spread = partial(fully_shard, mesh=init_device_mesh(device.type, shape, mesh_dim_names=names), mp_policy=policy)
    for block in (*trained_blocks(model), model.pixel_decoder):
        spread(block)
    spread(model, ignored_params=set(model.vae.parameters()))
    register_fsdp_forward_method(model.pixel_decoder, "decode")
    register_fsdp_forward_method(model, "loss")


def full_tensors(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The whole model on the CPU of process 0, gathered tensor by tensor; elsewhere nothing. All processes must call it."""
    gathered = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        if RANK == 0:
            gathered[name] = tensor.to("cpu", dtype, copy=True)
    return gathered


# ---- checkpoints -----------------------------------------------------------------------------------------------

def training_state(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Every tensor that a step changes, by name: themselves, not copies, so that loading fills them in place."""
    state, names = dict(model.state_dict()), {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        adam = isinstance(optimizer, torch.optim.AdamW)
        for parameter in sum((group["params"] for group in optimizer.param_groups), []):
            moments = optimizer.state[parameter]  # empty before the first step
            for key in ("exp_avg", "exp_avg_sq") if adam else ("momentum_buffer",):
                moments[key] = torch.zeros_like(parameter, requires_grad=False)
            if adam:
                moments["step"] = torch.zeros((), device=parameter.device)
            state |= {f"{key} of {names[parameter]}": value for key, value in moments.items()}
    return state


def hashes(folder: Path, names: list[str]) -> dict[str, str | None]:
    """SHA-256 of files, None where there is none; each process brings names of its own and gets all."""
    mine, gathered = dict.fromkeys(names), [None] * WORLD
    for name in names:
        if (folder / name).exists():
            with open(folder / name, "rb") as file:
                mine[name] = hashlib.file_digest(file, "sha256").hexdigest()
    if WORLD > 1:
        dist.all_gather_object(gathered, mine)
        mine = {name: value for part in gathered for name, value in part.items()}
    return mine


def digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def checkpoints(out: Path, phase: str) -> list[Path]:
    return sorted(out.glob(f"{phase}-{7 * '[0-9]'}"))  # and nothing that somebody has put beside them


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint; empty when the manifest has its seal and every file is what the manifest says."""

    def read() -> dict | str:
        try:
            manifest = read_json(folder / "manifest.json")
            return manifest if manifest.pop("seal") == digest(manifest) else "the manifest was changed"
        except (OSError, ValueError, KeyError) as error:
            return str(error)

    if isinstance(manifest := shared(read), str):
        return manifest
    wanted = manifest["files"]
    found = hashes(folder, sorted(wanted)[RANK::WORLD])
    wrong = sorted(name for name in wanted if found[name] != wanted[name])
    return f"changed or missing: {', '.join(wrong)}" if wrong else ""


def save(out: Path, phase: str, keep: int, state: dict[str, Tensor], manifest: dict) -> None:
    """A checkpoint OUT/PHASE-STEP, complete or invisible: written under another name, then a hash of every file, then renamed.
    The newest `keep` stay. Raises OSError when it cannot be written; what was there before is untouched."""
    unfinished, folder = out / ".partial", out / f"{phase}-{manifest['step']:07d}"
    shared(lambda: shutil.rmtree(unfinished, ignore_errors=True) or unfinished.mkdir())
    # Each process writes files of about 1 GiB, one after the other, since a file is held in memory twice on its way.
    ends = itertools.accumulate(tensor.numel() * tensor.element_size() for tensor in state.values())
    files = {name: 1 + end // (WORLD << 30) for name, end in zip(state, ends)}
    try:
        dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(str(unfinished), files, save_distributed=True))
    except CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        shared(lambda: shutil.rmtree(unfinished, ignore_errors=True))
        raise OSError(f"cannot save {folder} ({reason}); earlier checkpoints are untouched") from None
    written = hashes(unfinished, [path.name for path in unfinished.glob(f"shard-{RANK + 1:05d}-*")])

    def finish() -> None:
        whole = manifest | {"files": written}
        write_json(unfinished / "manifest.json", whole | {"seal": digest(whole)})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
        for old in checkpoints(out, phase)[:-keep]:
            shutil.rmtree(old)

    shared(finish)


def load(folder: Path, state: dict[str, Tensor]) -> None:
    try:
        dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(folder)))
    except CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise ValueError(f"{folder} is of another model ({reason}); choose another --out") from None


def resume(out: Path, phase: str, state: dict[str, Tensor], run: dict) -> dict:
    """Fills `state` from the newest good checkpoint of a phase -> its manifest, or one of step 0. Damaged ones are set aside.
    Raises ValueError when it belongs to a run that is not `run`."""
    for folder in shared(lambda: checkpoints(out, phase)[::-1]):
        if problem := damage(folder):
            shared(lambda: os.replace(folder, folder.with_name(f"damaged-{folder.name}-{time.time_ns()}")))
            say(f"{folder} is damaged ({problem}); it is set aside")
            continue
        manifest = read_json(folder / "manifest.json")
        if other := [name for name in run if json.dumps(run[name]) != json.dumps(manifest["run"].get(name))]:  # order counts
            raise ValueError(f"{folder} is of a run with another {', '.join(other)}; choose another --out, "
                             "or train its model further with --init")
        load(folder, state)
        return manifest
    return {"step": 0, "positions": {}, "taken": [[0] * len(run["data"])] * 2}


def export(folder: Path, out: Path) -> None:
    """A checkpoint of a run -> the official layout, in bf16, with no more than the model itself in memory."""
    if problem := damage(folder):
        raise ValueError(f"{folder} is damaged ({problem}); take another checkpoint")
    model = Cheers.from_configuration(folder.parent).to(torch.bfloat16).to_empty(device="cpu")
    load(folder, dict(model.state_dict()))
    model.save_pretrained(out)


# ---- metrics ---------------------------------------------------------------------------------------------------

def forget(path: Path, phase: str, start: int) -> None:
    """Drops the lines of steps that will be done again, and what a kill left half written."""
    if path.exists():
        kept = []
        for line in path.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                entry = json.loads(line)
                again = isinstance(entry, dict) and entry.get("phase") == phase and entry["step"] > start
                kept += [line] * (not again)
        (unfinished := path.with_suffix(".partial")).write_text("".join(f"{line}\n" for line in kept))
        os.replace(unfinished, path)


def write_lines(path: Path, lines: list[dict]) -> None:
    if lines:
        with open(path, "a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))


class Window:
    """What is measured between two lines of the metrics, over all processes."""

    def __init__(self, flops: tuple[float, float, float], device: torch.device):
        self.flops, self.device = flops, device
        self.clear()

    def clear(self) -> None:
        self.losses, self.norms, self.counts = {}, [], np.zeros(6)
        self.began = self.waits_since = time.monotonic()

    def data_arrived(self) -> None:
        self.counts[0] += time.monotonic() - self.waits_since

    def add(self, item: Step, losses: dict[str, Tensor], norm: Tensor) -> None:
        self.losses = {name: self.losses.get(name, 0) + pair for name, pair in losses.items()}
        self.norms.append(norm)
        self.counts[1:] += [sum(item.seen), *item.tokens, *item.pictures]

    def close(self) -> dict:
        pairs = total(torch.stack(list(self.losses.values())).cpu().double())      # (losses, 2): sum, count
        line = {name: float(value / n) for name, (value, n) in zip(self.losses, pairs) if n}
        if "text" in self.losses:
            value, n = pairs[1:].sum(0)
            line |= {"image": float(value / n)} if n else {}
            line["loss"] = line.get("text", 0.0) + line.get("image", 0.0)
        seconds = time.monotonic() - self.began
        waiting, samples, tokens, padded, pictures, painted = total(torch.from_numpy(self.counts)).tolist()
        line["gradient_norm"] = float(torch.stack(self.norms).mean())
        line |= {"steps_per_second": len(self.norms) / seconds, "waiting": waiting / WORLD / seconds}
        if samples:
            line |= {"samples_per_second": samples / seconds, "padding": 1 - tokens / padded}
        if self.device.type == "cuda" and any(self.flops):
            flops = sum(count * each for count, each in zip((tokens, pictures, painted), self.flops))
            peaks = [peak for name, peak in PEAKS.items() if name in torch.cuda.get_device_name()]
            line |= {"mfu": flops / seconds / WORLD / peak for peak in peaks}
            line["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.clear()
        return {name: float(f"{value:.7g}") for name, value in line.items()}
