"""Training: the paper's four stages with FSDP2; without `--stage`, the tiny model on the toy world, from nothing.

    python train.py --out runs/tiny                                    # on a laptop: VAE first, then everything else
    torchrun --nproc-per-node 8 train.py --stage 2 --data pairs.jsonl questions.jsonl text.jsonl --init runs/stage-1/model

The recipe is the paper's (arXiv 2603.12793, sections 2.2 and 2.3): L_AR + λ·L_FM, t uniform in (0, 1), text dropped with
probability 0.2, AdamW, clipping at 1.0, the VAE frozen, its decoder's copy D trained. The training step is `cheers_step`.
A step depends on the seed and on where the sources stand, never on how many processes share it.
"""

import argparse
import hashlib
import json
import math
import os
import re
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import cfm_head
import data
import qwen
import shapes
import siglip
import vae
from cheers import IGNORE, Cheers, CheersConfig, SpecialTokens, attention_mask, best_device, read_json, write_json
from data import Step
from sample import generate_images
from vae import PATCH, VAE


# ---- recipes ---------------------------------------------------------------------------------------------------


@dataclass
class Recipe:
    """What a stage fixes; each value can be overridden on the command line."""

    lr: float
    schedule: str                 # "constant" or "cosine", after a warm-up over 2 % of the steps
    batch: int                    # samples per step, of all processes together
    steps: int
    mix: dict[str, float]         # shares of the kinds of samples
    parts: tuple[str, ...] = ("",)  # beginnings of the names of what is trained; the VAE never is


PRETRAINING = {"understanding": 3, "generation": 6, "text": 1}
STAGES = {
    # Stage I trains the new parts, and the embedding for the sake of the five new tokens.
    1: Recipe(1e-4, "constant", 512, 30_000, {"understanding": 1, "generation": 1}, ("projector.", "head.", "qwen.embed_tokens.")),
    2: Recipe(1e-4, "constant", 512, 60_000, PRETRAINING),
    3: Recipe(4e-5, "constant", 512, 65_000, PRETRAINING),
    4: Recipe(2e-5, "cosine", 128, 30_000, {"understanding": 1, "generation": 1}),
}
TOY = Recipe(1e-3, "cosine", 16, 20_000, PRETRAINING)
# Adam moves all weights equally fast, so an output that sums over many inputs runs ahead of a word's embedding, and pictures
# drown the text. From nothing, words need to learn faster than the projector.
PACES = (("qwen.embed_tokens.", 5.0), ("projector.", 0.2))


def learning_rate(step: int, recipe: Recipe) -> float:
    warm_up = min((step + 1) / max(1, round(0.02 * recipe.steps)), 1)
    return recipe.lr * min(warm_up, 0.5 + 0.5 * math.cos(math.pi * step / recipe.steps) if recipe.schedule == "cosine" else 1)


def tiny_model() -> Cheers:
    """6 M parameters, 32x32 pictures, VAE factor 4: 8x8 latents, 16 visual tokens."""
    tokenizer = data.toy_tokenizer()
    tokens = ("<|im_end|>", "<image>", "<image_gen>", "<im_start>", "<im_end>", "<no_mean>")
    vocabulary = math.ceil(tokenizer.backend.get_vocab_size() / 64) * 64
    model = Cheers(CheersConfig(
        vae=vae.VAEConfig(resolution=32, ch=16, ch_mult=(1, 2), num_res_blocks=1, z_channels=2, norm_groups=8),
        siglip=siglip.SigLIPConfig(128, 512, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=4),
        qwen=qwen.QwenConfig(192, 768, 4, 4, 2, vocabulary, rope_theta=10_000.0, max_position_embeddings=1024),
        head_depths=(2, 2),
        special=SpecialTokens(*(tokenizer.id(token) for token in tokens)),
    ))
    model.initialise()
    model.tokenizer, model.generation = tokenizer, {"steps": 40, "guidance": 3.0, "shift": 0.5}
    return model


# ---- one step of each phase ------------------------------------------------------------------------------------


def vae_step(vae: VAE, step: Step) -> dict[str, Tensor]:
    """L1 + L2 reconstruction of sampled latents, and a small pull of the posterior towards N(0, 1). In the second half also
    E(D(z_t)) = z_t: a decoder of clean scenes only turns noise into a plain background, from which no velocity can be read."""
    *tensors, late = step.batches[0]
    pixels, noise, t = (part.to(vae.bn.running_mean.device) for part in tensors)
    mean, log_variance = vae.encoder(pixels).chunk(2, dim=1)
    log_variance = log_variance.float().clamp(-20, 10)
    reconstruction = vae.decoder(mean + noise * torch.exp(0.5 * log_variance)).float()
    kl = 0.5 * (mean.float() ** 2 + log_variance.exp() - 1 - log_variance).mean()
    squared = F.mse_loss(reconstruction, pixels)
    cycle = torch.zeros_like(squared)
    if late:
        z_1 = mean.detach()
        center, spread = z_1.mean((0, 2, 3), keepdim=True), z_1.std((0, 2, 3), keepdim=True) + 1e-6
        z_t = t * z_1 + (1 - t) * (center + spread * noise)
        cycle = ((vae.encoder(vae.decoder(z_t)).chunk(2, dim=1)[0] - z_t) / spread).square().mean()
    total = squared + 0.1 * F.l1_loss(reconstruction, pixels) + 5e-5 * kl + 0.02 * cycle
    total.backward()
    values = {"loss": total, "psnr": -10 * squared.log10(), "cycle": cycle}
    return {name: torch.stack([value.detach(), torch.ones_like(value)]) for name, value in values.items()}


@torch.no_grad()
def measure_latents(vae: VAE, pictures: data.ToyPictures) -> None:
    """Stores mean and variance of every latent channel, so that latents are normalised from here on."""
    unseen = [pictures[1_000_000 + k].batches[0][0].to(vae.bn.running_mean.device) for k in range(32)]
    latents = F.pixel_unshuffle(torch.cat([vae.encoder(pixels).chunk(2, dim=1)[0] for pixels in unseen]), PATCH)
    vae.bn.running_mean.copy_(latents.mean(dim=(0, 2, 3)))
    vae.bn.running_var.copy_(latents.var(dim=(0, 2, 3)))


def cheers_step(model: Cheers, step: Step) -> dict[str, Tensor]:
    """The training step: gradients of L_total = L_AR + λ·L_FM, λ = 1, both means over the samples of all processes together.
    Returns the sum and count of each loss that this process saw."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    counts = [((batch.labels[:, 1:] != IGNORE).sum(), (batch.t < 1).sum()) for batch in step.batches]
    tokens, pictures = total(torch.tensor(counts, dtype=torch.float64).sum(0)).clamp(min=1).tolist()
    sums = torch.zeros(len(LOGGED), 2, device=model.device)                        # (sum, count) each
    for i, (batch, (text_count, image_count)) in enumerate(zip(step.batches, counts)):
        if world > 1:  # gradients travel once per step
            model.set_requires_gradient_sync(i == len(counts) - 1)
        loss = model.loss(batch)
        # FSDP averages gradients over the processes; with the factor `world` it sums them
        (world * (loss.text * text_count / tokens + loss.image * image_count / pictures)).backward()
        buckets = (4 * batch.t[batch.t < 1]).long().to(model.device)
        sums[0] += torch.stack([loss.text.detach() * text_count, text_count.to(model.device)])
        errors = loss.errors[: len(buckets)]  # all, or of a picture that does not count none
        sums[1:].index_add_(0, buckets, torch.stack([errors, torch.ones_like(errors)], dim=1))
    return dict(zip(LOGGED, sums))


LOGGED = ("text", "image_t_0.00", "image_t_0.25", "image_t_0.50", "image_t_0.75")  # and the image loss by quarter of t


def total(values: Tensor) -> Tensor:
    """The sum over all processes of a tensor on the CPU."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def freeze(model: Cheers, recipe: Recipe) -> None:
    """Leaves trainable what the stage trains; the VAE never is."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(recipe.parts) and not name.startswith("vae."))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"no parameter's name begins with {' or '.join(recipe.parts)}, so nothing would be trained")


# ---- many processes --------------------------------------------------------------------------------------------

BLOCKS = (qwen.Layer, siglip.Layer, cfm_head.Block, vae.ResnetBlock, vae.LatentDecoder)


def start_processes() -> tuple[int, int, torch.device]:
    """Rank, number of processes and device: what torchrun says, else one process."""
    if "RANK" not in os.environ:
        return 0, 1, best_device()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # Two backends: tensors on the CPU, such as counts, must not wait for a GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=10))
    return dist.get_rank(), dist.get_world_size(), device


def prepare(model: nn.Module, device: torch.device, dtype: torch.dtype, replicas: int, recompute: bool, compiled: bool) -> None:
    """Activation checkpointing, compilation and FSDP2, block by block. Master weights and gradients stay in float32."""
    frozen = set(model.vae.modules()) if isinstance(model, Cheers) else set()
    blocks = [module for module in model.modules() if isinstance(module, BLOCKS) and module not in frozen]
    for block in blocks:
        if recompute and not isinstance(block, vae.LatentDecoder):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if compiled and not isinstance(block, vae.LatentDecoder):
            block.compile(dynamic=True)
    if not dist.is_initialized():
        return
    world = dist.get_world_size()
    shape, names = ((replicas, world // replicas), ("replicate", "shard")) if replicas > 1 else ((world,), ("shard",))
    settings = {
        "mesh": init_device_mesh(device.type, shape, mesh_dim_names=names),
        "mp_policy": MixedPrecisionPolicy(dtype if dtype != torch.float32 else None, torch.float32, cast_forward_inputs=False),
    }
    for block in reversed(blocks):  # an outer block takes what its inner ones left
        fully_shard(block, **settings)
    fully_shard(model, **settings, ignored_params={p for module in frozen for p in module.parameters()})
    for module, method in ((model, "loss"), *((block, "decode") for block in blocks if isinstance(block, vae.LatentDecoder))):
        register_fsdp_forward_method(module, method)


@contextmanager
def compute(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Matrix products in `dtype`; weights stay in float32."""
    # On CPUs the plain attention kernel has the faster backward at the tiny model's sizes.
    plain = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, dtype, dtype != torch.float32), plain:
        yield


def full_tensors(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The whole model on the CPU of process 0, gathered tensor by tensor; elsewhere nothing. All processes must call it."""
    gathered = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        if not dist.is_initialized() or dist.get_rank() == 0:
            gathered[name] = tensor.to("cpu", dtype, copy=True)
    return gathered


# ---- checkpoints -----------------------------------------------------------------------------------------------


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor that a step changes, by name: themselves, not copies, so that loading fills them in place."""
    state = dict(model.state_dict())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            moments = optimizer.state[parameter]
            if not moments:  # before the first step
                zeros = (torch.zeros_like(parameter, requires_grad=False) for _ in range(2))
                moments |= {"step": torch.zeros(()), **dict(zip(("exp_avg", "exp_avg_sq"), zeros))}
            state |= {f"{key} of {name}": value for key, value in moments.items()}
    return state


def shared(function: Callable):
    """Process 0 calls the function -> its result, in every process."""
    result = [function() if not dist.is_initialized() or dist.get_rank() == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(result)
    return result[0]


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a folder but the manifest; the processes share the work."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine, gathered = {}, [None] * world
    for path in sorted(path for path in folder.iterdir() if path.name != "manifest.json")[rank::world]:
        with open(path, "rb") as file:
            mine[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    if world == 1:
        return mine
    dist.all_gather_object(gathered, mine)
    return {name: value for part in gathered for name, value in part.items()}


def save(out: Path, phase: str, step: int, keep: int, state: dict[str, Tensor], positions: dict[str, int]) -> None:
    """A checkpoint OUT/PHASE-STEP, complete or invisible: written under another name, with a hash of every file, then renamed.
    The newest `keep` complete ones stay. Raises OSError when it cannot be written; what was there before is untouched."""
    unfinished, folder = out / ".partial", out / f"{phase}-{step:07d}"
    shared(lambda: shutil.rmtree(unfinished, ignore_errors=True) or unfinished.mkdir())
    try:
        dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(str(unfinished), save_distributed=True))
    except CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise OSError(f"cannot save step {step} in {out} ({reason}); earlier checkpoints are untouched") from None
    files = hashes(unfinished)

    def finish() -> None:
        write_json(unfinished / "manifest.json", {"step": step, "positions": positions, "files": files})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
        for old in sorted(out.glob(f"{phase}-*[0-9]"))[:-keep]:
            shutil.rmtree(old)

    shared(finish)


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint; empty when every file is what the manifest says."""
    found = hashes(folder)
    try:
        wanted = read_json(folder / "manifest.json")["files"]
        wrong = sorted(name for name in wanted if found.get(name) != wanted[name])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)
    return f"changed or missing: {', '.join(wrong)}" if wrong else ""


def resume(out: Path, phase: str, state: dict[str, Tensor]) -> tuple[int, dict[str, int]]:
    """Fills `state` from the newest good checkpoint of a phase -> its step, and where the sources stood; 0 when there is none.
    Damaged ones are set aside."""
    for folder in shared(lambda: sorted(out.glob(f"{phase}-*[0-9]"), reverse=True)):
        if problem := damage(folder):
            shared(lambda: os.replace(folder, folder.with_name(f"damaged-{folder.name}-{time.time_ns()}")))
            say(f"{folder} is damaged ({problem}); it is set aside")
            continue
        try:
            dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(folder)))
        except CheckpointException as error:
            reason = next(iter(error.failures.values()))[0]
            raise ValueError(f"{folder} is of another model ({reason}); choose another --out") from None
        manifest = read_json(folder / "manifest.json")
        return manifest["step"], manifest["positions"]
    return 0, {}


def say(sentence: str) -> None:
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(sentence, file=sys.stderr, flush=True)


class StopRequest:
    """SIGTERM and Ctrl-C let the step finish and a checkpoint be written."""

    GRACE = 25  # seconds that a cluster, torchrun among them, leaves for this

    def __init__(self):
        self.signal = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.note)

    def note(self, number: int, _frame) -> None:
        self.signal = number


# ---- the loop --------------------------------------------------------------------------------------------------


def fit(
    phase: str, model: nn.Module, recipe: Recipe, make_items: Callable[[int, dict], Dataset], step_function: Callable,
    args: argparse.Namespace, after_save: Callable[[int], dict] = lambda step: {}, flops: tuple[float, float, float] = (0, 0, 0),
) -> None:
    """Runs `step_function(model, item)`, which fills the gradients, from the newest checkpoint to the last step."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            pace = next((pace for part, pace in PACES if not args.stage and name.startswith(part)), 1.0)
            groups.setdefault(pace, []).append(parameter)
    parameters = sum(groups.values(), [])
    optimizer = torch.optim.AdamW(
        [{"params": group, "pace": pace} for pace, group in groups.items()],
        lr=recipe.lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True,
    )
    state = training_state(model, optimizer)
    start, positions = resume(args.out, phase, state)
    items = make_items(start, positions)
    log = Log(args.out, phase, start, args.device, flops)
    loader = DataLoader(
        items, batch_size=None, sampler=range(start, recipe.steps), num_workers=args.workers, prefetch_factor=8,
        worker_init_fn=lambda _: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    stop, save_seconds, saved, ready = StopRequest(), 0.0, start, time.monotonic()
    bar = tqdm(loader, phase, initial=start, total=recipe.steps, smoothing=0.05, dynamic_ncols=True, disable=rank > 0)
    for step, item in enumerate(bar, start):
        log.waiting += time.monotonic() - ready
        rate = learning_rate(step, recipe)
        for group in optimizer.param_groups:
            group["lr"] = group["pace"] * rate
        with compute(args.device, args.dtype):
            losses = step_function(model, item)
        for parameter in parameters:  # of a part that had nothing to do: Adam counts the step all the same
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        log.add(item, losses, norm)
        done, last = step + 1, step + 1 == recipe.steps
        stopping, *lines = total(torch.tensor([stop.signal, *item.seen, *item.damaged])).tolist()
        log.check_damage(np.array(lines).reshape(2, -1), [source.lines for source in items.sources], args.skip_limit)
        if done % args.log_every == 0 or last or stopping:
            bar.set_postfix(log.write(done, rate))
        if stopping and saved and save_seconds > stop.GRACE:
            raise SystemExit(f"train.py: stopped; saving would take too long, the last checkpoint is of step {saved}")
        if done % args.save_every == 0 or last or stopping:
            began = time.monotonic()
            save(args.out, phase, done, args.keep, state, item.positions)
            save_seconds, saved = time.monotonic() - began, done
            if not stopping and (scores := after_save(done)):
                log.line({"step": done} | scores)
            log.began += time.monotonic() - began
        if stopping:
            say(f"train.py: stopped and saved after step {done}; the same command goes on from there")
            raise SystemExit(128 + signal.SIGTERM)
        ready = time.monotonic()


class Log:
    """OUT/metrics.jsonl: means since the last line, over all processes. OUT/skipped.jsonl: damaged lines."""

    def __init__(self, out: Path, phase: str, start: int, device: torch.device, flops: dict[str, float]):
        self.out, self.phase, self.device, self.flops = out, phase, device, flops
        self.main = not dist.is_initialized() or dist.get_rank() == 0
        self.lines = np.zeros((2, 1))                          # (2, sources): seen and damaged since the start
        path = out / "metrics.jsonl"
        if self.main and path.exists():  # steps that will be done again are forgotten
            lines = [line for line in path.read_text().splitlines() if line.endswith("}")]  # a kill leaves half a line
            kept = [line for line in lines if (c := json.loads(line))["phase"] != phase or c["step"] <= start]
            (partial := out / ".metrics.partial").write_text("".join(f"{line}\n" for line in kept))
            os.replace(partial, path)
        self.clear()

    def clear(self) -> None:
        self.sums, self.norms, self.waiting, self.began = {}, [], 0.0, time.monotonic()
        self.counts = np.zeros(5)                              # samples, tokens, the same with padding, pictures, painted

    def add(self, item: Step, losses: dict[str, Tensor], norm: Tensor) -> None:
        self.sums = {name: self.sums.get(name, 0) + pair for name, pair in losses.items()}
        self.norms.append(norm)
        self.counts += [sum(item.seen), *item.tokens, *item.pictures]
        self.positions = item.positions
        for entry in item.skipped:
            with open(self.out / "skipped.jsonl", "a") as file:
                file.write(json.dumps(entry) + "\n")

    def check_damage(self, new: np.ndarray, lengths: list[int], limit: float) -> None:
        """Raises ValueError when more than `limit` of the lines of a source (at least of one pass or of 10,000) are damaged."""
        self.lines = self.lines + new
        for name, seen, damaged, length in zip(self.positions, *self.lines, lengths):
            if damaged > limit * max(seen, min(length, 10_000)):
                where = self.out / "skipped.jsonl"
                raise ValueError(f"{damaged:.0f} of {seen:.0f} lines of {name} are damaged, see {where}; mend it or raise --skip-limit")

    def write(self, step: int, rate: float) -> dict[str, str]:
        pairs = total(torch.stack(list(self.sums.values())).double().cpu())            # (losses, 2)
        means = {name: float(value / n) for name, (value, n) in zip(self.sums, pairs) if n}
        if "text" in self.sums:  # L_total = L_AR + λ·L_FM
            value, n = pairs[1:].sum(0)
            means |= {"image": float(value / n.clamp(min=1))}
            means |= {"loss": means.get("text", 0.0) + means["image"]}
        seconds, world = time.monotonic() - self.began, dist.get_world_size() if dist.is_initialized() else 1
        waiting, samples, tokens, padded, pictures, painted = total(torch.tensor([self.waiting, *self.counts])).tolist()
        line = {"step": step, "lr": rate, **means, "gradient_norm": float(torch.stack(self.norms).mean())}
        line |= {"steps_per_second": len(self.norms) / seconds, "waiting": waiting / world / seconds}
        if samples:
            line |= {"samples_per_second": samples / seconds, "padding": 1 - tokens / padded, "positions": self.positions}
            line |= {"skipped": dict(zip(self.positions, self.lines[1].tolist()))}
        if self.device.type == "cuda":
            line["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
            peak = next((peak for name, peak in PEAKS.items() if name in torch.cuda.get_device_name()), math.inf)
            line["mfu"] = sum(n * f for n, f in zip((tokens, pictures, painted), self.flops)) / seconds / world / peak
        self.line(line)
        self.clear()
        return {name: f"{value:.3f}" for name, value in means.items() if "_t_" not in name}

    def line(self, content: dict) -> None:
        if self.main:
            rounded = {k: float(f"{v:.7g}") if isinstance(v, float) else v for k, v in content.items()}
            with open(self.out / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"phase": self.phase} | rounded) + "\n")


# ---- looking at the result -------------------------------------------------------------------------------------


def look(model: Cheers, out: Path, step: int, count: int = 8, seed: int = 0) -> dict[str, float]:
    """Paints `count` pictures for each of the six tasks -> OUT/samples-STEP.png (a row per task), and each task's score."""
    weights = full_tensors(model, torch.float32)
    if not weights:
        return {}
    with torch.device("meta"):
        painter = Cheers(model.config)
    painter.load_state_dict(weights, assign=True)
    painter.tokenizer, painter.generation = model.tokenizer, model.generation
    rng = np.random.default_rng([seed, 2])
    prompts = [shapes.task_prompts(task, count, rng) for task in shapes.TASKS]
    pixels = generate_images(painter.eval().to(best_device()), sum(prompts, []), steps=20, seed=seed).cpu()
    scores = {
        task: float(np.mean([shapes.score(p, prompt).correct for p, prompt in zip(rows, asked)]))
        for task, asked, rows in zip(shapes.TASKS, prompts, pixels.split(count))
    }
    data.contact_sheet(pixels, count).save(out / f"samples-{step:07d}.png")
    return scores | {"overall": float(np.mean(list(scores.values())))}


# ---- knowing before paying -------------------------------------------------------------------------------------

PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}  # bf16 FLOP/s without sparsity


def cost(model: Cheers, length: int, pictures: int, painted: int, supervised: int) -> tuple[int, int]:
    """FLOP of one training step on one sample (forward, and backward as far as gradients are needed) and bytes that the forward
    pass keeps for the backward pass. `model` is on the meta device: nothing is computed, torch counts."""
    c, side = model.config, model.config.siglip.image_size
    m, kept, weights = (side // c.multiple) ** 2, {}, {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            x, outputs = model.qwen.embed_tokens(torch.zeros(1, length - pictures * m, dtype=torch.int64)), []
            if pictures:
                tokens, details = model.tokenize_image(model.encode_image(torch.zeros(pictures, 3, side, side)))
                x = torch.cat([tokens.reshape(1, -1, c.qwen.hidden_size), x], dim=1)
            mask = attention_mask(torch.zeros(1, length, dtype=torch.bool))
            hidden, _ = model.qwen(x, torch.arange(length)[None], mask)
            if painted:
                h = hidden[:, : painted * m].reshape(painted, m, -1)
                outputs.append(model.velocity(h, torch.zeros(painted), details[:painted]).float().sum())
            if supervised:
                outputs.append(model.qwen.logits(hidden[0, :supervised]).float().sum())
        sum(outputs).backward()
    return counter.get_total_flops(), sum(storage.nbytes() for storage in kept.values())


def unit_costs(model: Cheers) -> tuple[float, float, float]:
    """FLOP of a training step for each token, for each picture, and in addition for each picture to paint."""
    m = (model.config.siglip.image_size // model.config.multiple) ** 2
    text, seen, painted = (cost(model, *sample)[0] for sample in ((128, 0, 0, 64), (m + 128, 1, 0, 64), (m + 128, 1, 1, 64)))
    return text / 128, seen - text * (m + 128) / 128, painted - seen


def bytes_per_process(model: nn.Module, shards: int) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer in process 0, exactly: FSDP2 cuts the first dimension into equal pieces. The
    frozen VAE is held whole by every process."""
    sizes = {"weights": 0, "gradients": 0, "optimizer": 0}
    for name, p in model.named_parameters():
        here = p.numel() if name.startswith("vae.") else math.ceil(p.shape[0] / shards) * (p.numel() // p.shape[0])
        sizes["weights"] += 4 * here
        sizes["gradients"] += 4 * here * p.requires_grad
        sizes["optimizer"] += (8 * here + 4) * p.requires_grad  # two moments, and a counter
    return sizes


def plan(model: Cheers, recipe: Recipe, args: argparse.Namespace) -> None:
    """Prints what a run would need; `model` is on the meta device."""
    for part, module in (*model.named_children(), ("all", model)):
        numbers = [(p.numel(), p.requires_grad) for p in module.parameters()]
        print(f"{part:14} {sum(n for n, _ in numbers):14,} parameters, {sum(n for n, on in numbers if on):14,} trained")
    GB, micro = 1e9, min(args.micro_batch or recipe.batch, math.ceil(recipe.batch / args.gpus))
    sizes = bytes_per_process(model, args.gpus // args.replicas)
    m = (model.config.siglip.image_size // model.config.multiple) ** 2
    samples = {  # tokens, pictures, painted, supervised tokens: 64 tokens of prompt, 64 of answer
        "understanding": (m + 128, 1, 0, 64), "generation": (m + 64, 1, 1, 2), "editing": (2 * m + 64, 2, 1, 2), "text": (128, 0, 0, 64),
    }
    costs = {kind: cost(model.to(torch.bfloat16), *sample) for kind, sample in samples.items()}
    if not args.keep_activations:
        prepare(model, torch.device("meta"), torch.float32, 1, True, False)
    print(f"\nper GPU, {args.gpus} of them in {args.replicas} replicas, {micro} samples at a time")
    for name, size in sizes.items():
        print(f"{name:14} {size:18,} bytes, exactly")
    activations = micro * max(cost(model, *sample)[1] for sample in samples.values())
    print(f"{'activations':14} {activations:18,} bytes, an estimate: bf16, the largest kind of sample, kernels' workspace not included")
    print(f"{'together':14} {(sum(sizes.values()) + activations) / GB:18.1f} GB\n")
    for kind, (flops, _) in costs.items():
        print(f"{kind:14} {flops / 1e12:10.3f} TFLOP per sample")
    share = {kind: part / sum(recipe.mix.values()) for kind, part in recipe.mix.items()}
    mean = sum(part * costs[kind][0] for kind, part in share.items())
    rate = args.gpus * args.mfu * PEAKS["A100"] / mean
    days = recipe.steps * recipe.batch / rate / 86_400
    print(f"{'the mix':14} {mean / 1e12:10.3f} TFLOP per sample: {rate:,.1f} samples/s on A100 at {args.mfu:.0%} MFU, {days:,.2f} days")
    whole = sum(bytes_per_process(model, 1).values()) - sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{'a checkpoint':14} {whole / GB:10.1f} GB, {whole / 2e9:,.0f} s at 2 GB/s")


# ---- command line ----------------------------------------------------------------------------------------------


def open_sources(args: argparse.Namespace, recipe: Recipe, side: int) -> tuple[list, list[float]]:
    """Sources of samples and their weights: files, by the stage's shares unless weights are given; else the toy world."""
    if not args.data:
        return [data.ToySource(make, side) for make in data.TOY_MIX], list(data.TOY_MIX.values())
    named = [re.fullmatch(r"(.*?)(?::([\d.]+))?", text).groups() for text in args.data]
    # Process 0 builds the indices of lines before the others open them.
    shared(lambda: [data.line_offsets(Path(path), args.out) for path, _ in named] and None)
    sources = [data.JsonLines(Path(path), args.images or Path(path).parent, args.out) for path, _ in named]
    weights = [float(weight) if weight else None for _, weight in named]
    if None in weights:
        lines = {kind: sum(s.lines for s in sources if s.kind == kind) for kind in recipe.mix}
        for source in sources:
            if any(weights) or source.kind not in lines:
                raise ValueError(f"{source.name} ({source.kind}) needs a weight, FILE:WEIGHT: this recipe mixes {', '.join(lines)}")
        weights = [recipe.mix[source.kind] * source.lines / lines[source.kind] for source in sources]
    return sources, weights


def export(folder: Path, out: Path) -> None:
    """A checkpoint of a run -> the official layout, in bf16, with no more than the model itself in memory."""
    model = Cheers.from_configuration(folder.parent).to(torch.bfloat16).to_empty(device="cpu")
    if problem := damage(folder):
        raise ValueError(f"{folder} is damaged ({problem}); take another checkpoint")
    dcp.load(dict(model.state_dict()), storage_reader=dcp.HuggingFaceStorageReader(str(folder)))
    model.save_pretrained(out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--stage", type=int, choices=STAGES, help="the paper's recipe; without it the tiny model's")
    add("--data", nargs="+", default=[], metavar="FILE[:WEIGHT]", help="JSON lines; the toy world when left out")
    add("--images", type=Path, metavar="DIR", help="where pictures are; the folder of their file when left out")
    add("--init", metavar="NAME|FOLDER", help="checkpoint to train further; the tiny model from nothing when left out")
    add("--components", nargs=3, metavar=("QWEN", "SIGLIP", "VAE"), help="a fresh start: two names or folders and ae.safetensors")
    add("--out", type=Path, default=Path("runs/tiny"), metavar="DIR", help="a run that is there already goes on")
    add("--steps", type=int)
    add("--vae-steps", type=int, default=3_000, help="steps of the tiny model's VAE, before everything else")
    add("--batch", type=int, help="samples per step, of all processes together")
    add("--micro-batch", type=int, help="samples at a time per process")
    add("--lr", type=float, help="peak learning rate")
    add("--schedule", choices=("constant", "cosine"))
    add("--parts", nargs="+", metavar="PREFIX", help="train only parameters whose names begin so")
    add("--seed", type=int, default=0)
    add("--save-every", type=int, default=1_000, help="steps between checkpoints")
    add("--log-every", type=int, default=100)
    add("--keep", type=int, default=2, help="checkpoints to keep")
    add("--skip-limit", type=float, default=0.01, help="share of damaged lines at which a run stops")
    add("--replicas", type=int, default=1, help="groups of processes that hold the model once each (HSDP)")
    add("--compile", action="store_true", help="compile each block")
    add("--keep-activations", action="store_true", help="faster, needs more memory; the tiny model always does")
    add("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="processes that read samples, per process")
    add("--dtype", choices=("float32", "bfloat16"), help="of matrix products; bfloat16 on GPUs, else float32")
    add("--export", type=Path, metavar="CHECKPOINT", help="write a run's checkpoint to --out in the official layout; train nothing")
    add("--plan", action="store_true", help="print what a run would need, and train nothing")
    add("--gpus", type=int, default=1, help="for --plan")
    add("--mfu", type=float, default=0.4, help="for --plan: share of the A100's peak that is reached")
    args = parser.parse_args()
    for name in ("steps", "vae_steps", "batch", "micro_batch", "save_every", "log_every", "keep", "replicas", "gpus", "workers"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    for wrong, sentence in (
        (args.lr is not None and not 0 < args.lr < math.inf or args.seed < 0, "--lr must be positive and --seed not negative"),
        (not 0 < args.mfu <= 1 or not 0 <= args.skip_limit <= 1, "--mfu and --skip-limit are shares, between 0 and 1"),
        (bool(args.init) and bool(args.components), "--init and --components are two ways to start; choose one"),
        (args.stage and not args.plan and not args.data, "--stage needs samples: --data FILE ..."),
        (args.stage and not args.plan and not args.init and not args.components,
         "--stage needs weights to start from: --init NAME|FOLDER, or --components QWEN SIGLIP VAE"),
        (args.plan and args.gpus % args.replicas, "--replicas must divide --gpus"),
    ):
        if wrong:
            parser.error(sentence)
    return args


def main() -> None:
    args = parse_arguments()
    # Both are about uses other than ours: saving without processes is meant, and nothing is changed in place.
    warnings.filterwarnings("ignore", "torch.distributed is disabled|FSDP2-wrapped module .* returned a view")
    given = {"lr": args.lr, "schedule": args.schedule, "batch": args.batch, "steps": args.steps}
    given["parts"] = tuple(args.parts) if args.parts else None
    recipe = replace(STAGES.get(args.stage, TOY), **{name: value for name, value in given.items() if value is not None})
    if args.plan:
        with torch.device("meta"):
            model = Cheers(CheersConfig()) if args.stage and not args.init else tiny_model()
        freeze(model, recipe)
        return plan(model, recipe, args)
    if args.export:
        return export(args.export, args.out)
    rank, world, args.device = start_processes()
    args.dtype = getattr(torch, args.dtype or ("float32" if args.device.type == "cpu" else "bfloat16"))
    if recipe.batch % world or world % args.replicas:
        raise ValueError(f"--batch {recipe.batch} must be a multiple of the {world} processes, and these of --replicas")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write {args.out} ({error.strerror}); choose another --out") from None
    torch.set_flush_denormal(True)  # denormal numbers are many times slower on CPUs
    torch.manual_seed(args.seed)
    if args.components:
        model = Cheers.from_components(*args.components, device="cpu")
    else:
        model = Cheers.from_pretrained(args.init, "cpu", torch.float32) if args.init else tiny_model()
    if model.tokenizer is None:
        raise ValueError(f"{args.init} has no tokenizer; add tokenizer.json to it")
    model.to(args.device)
    if not args.init and not args.components:
        # So small that every process trains it alike, on the same pictures.
        pictures = data.ToyPictures(args.vae_steps, 2 * recipe.batch, model.config, args.seed)
        fit("vae", model.vae, replace(recipe, lr=args.lr or 2e-3, steps=args.vae_steps), lambda *_: pictures, vae_step, args)
        measure_latents(model.vae, pictures)
        model.pixel_decoder.load_state_dict(model.vae.state_dict(), strict=False)
    shared(lambda: model.save_configuration(args.out, torch.bfloat16))  # for `export`
    freeze(model, recipe)
    model.train()
    sources, weights = open_sources(args, recipe, model.config.siglip.image_size)
    say(json.dumps(asdict(recipe) | {"data": {s.name: w for s, w in zip(sources, weights)}, "processes": world, "dtype": str(args.dtype)}))
    prepare(model, args.device, args.dtype, args.replicas, bool(args.stage) and not args.keep_activations, args.compile)
    micro = args.micro_batch or recipe.batch
    items = partial(
        data.Mixture, sources, weights, recipe.batch, micro, args.seed, model.tokenizer, model.config, recipe.steps, rank, world
    )
    flops = (0.0, 0.0, 0.0)
    if args.device.type == "cuda":
        counted = Cheers.from_configuration(args.out)
        freeze(counted, recipe)
        flops = unit_costs(counted)
    fit("cheers", model, recipe, items, cheers_step, args, (lambda step: {} if args.data else look(model, args.out, step)), flops)
    weights = full_tensors(model, torch.bfloat16)
    if rank == 0:
        model.save_pretrained(args.out / "model", weights=weights)
        print(args.out / "model")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"train.py: {error}")
