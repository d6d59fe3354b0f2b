"""Training: the paper's four stages with FSDP2; without `--stage`, the tiny model on the toy world, from nothing.

    python train.py --out runs/tiny                                    # on a laptop: VAE first, then everything else
    torchrun --nproc-per-node 8 train.py --stage 2 --data pairs.jsonl questions.jsonl text.jsonl --init runs/stage-1/model

The recipe is the paper's (arXiv 2603.12793, sections 2.2 and 2.3): L_AR + λ·L_FM, t uniform, text dropped with probability 0.2,
AdamW, clipping at 1.0, the VAE frozen, its copy D trained. Without `--stage`, times (`Recipe.shift`) and optimizers (`toy_groups`)
suit a start from nothing. A step depends on the seed and on where the sources stand, never on how many processes share it.
"""

import argparse
import json
import math
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import data
from cheers import IGNORE, Cheers, CheersConfig
from parallel import RANK, WORLD, Window, checkpoints, export, forget, full_tensors, lock, resume, save, say, shard, shared
from parallel import start_process, total, trained_blocks, training_state, write_lines
from plan import plan, unit_costs
from tiny import look, measure_latents, tiny_model, toy_groups, vae_step


# ---- recipes ---------------------------------------------------------------------------------------------------

@dataclass
class Recipe:
    """What a stage fixes; each value can be overridden on the command line."""

    lr: float
    schedule: str                   # "constant" or "cosine", after a warm-up over 2 % of the steps
    batch: int                      # samples per step, of all processes together
    steps: int
    mix: dict[str, float]           # shares of the kinds of samples
    parts: tuple[str, ...] = ("",)  # beginnings of the names of what is trained; the VAE never is
    shift: float = 1.0              # α of the times: uniform for 1 (the paper); below, more of them where pictures begin


ALIGNMENT = {"understanding": 4.5, "generation": 13}  # 4.5 M captions, 1.3 M pictures ten times
PRETRAINING = {"understanding": 3, "generation": 6, "text": 1}
STAGES = {
    # Stage I trains the new parts, and the embedding for the sake of the five new tokens.
    1: Recipe(1e-4, "constant", 512, 30_000, ALIGNMENT, ("projector.", "head.", "qwen.embed_tokens.")),
    2: Recipe(1e-4, "constant", 512, 60_000, PRETRAINING),
    3: Recipe(4e-5, "constant", 512, 65_000, PRETRAINING),
    4: Recipe(2e-5, "cosine", 128, 30_000, {"understanding": 1, "generation": 1}),
}
# What a picture will hold is decided early; where little can be trained, that is what it must be spent on.
TOY = Recipe(1e-3, "cosine", 16, 15_000, PRETRAINING, shift=0.25)


def learning_rate(step: int, recipe: Recipe) -> float:
    warm_up = min((step + 1) / max(1, round(0.02 * recipe.steps)), 1)
    return recipe.lr * min(warm_up, 0.5 + 0.5 * math.cos(math.pi * step / recipe.steps) if recipe.schedule == "cosine" else 1)


def freeze(model: Cheers, recipe: Recipe) -> None:
    model.vae.requires_grad_(False)
    others = {name: parameter for name, parameter in model.named_parameters() if not name.startswith("vae.")}
    for name, parameter in others.items():
        parameter.requires_grad_(name.startswith(tuple(recipe.parts)))
    for part in recipe.parts:
        if not any(name.startswith(part) for name in others):
            raise ValueError(f"no parameter that can be trained has a name that begins with {part!r}")


# ---- one step --------------------------------------------------------------------------------------------------

LOGGED = ("text", "image_t_0.00", "image_t_0.25", "image_t_0.50", "image_t_0.75")  # losses; the image's by quarter of t


def cheers_step(model: Cheers, step: data.Step) -> dict[str, Tensor]:
    """The training step: L_total = L_AR + λ·L_FM, λ = 1, both means over the samples of all processes together."""
    counts = [((batch.labels[:, 1:] != IGNORE).sum(), (batch.t < 1).sum()) for batch in step.batches]
    tokens, pictures = total(torch.tensor(counts, dtype=torch.float64).sum(0)).clamp(min=1).tolist()
    sums = torch.zeros(len(LOGGED), 2, device=model.device)
    for batch, (text_count, image_count) in zip(step.batches, counts):
        loss = model.loss(batch)
        # FSDP averages gradients over the processes; the factor WORLD makes that a sum
        weighted = WORLD * (loss.text * text_count / tokens + loss.image * image_count / pictures)
        if weighted.requires_grad:  # else all that these samples touch is frozen
            weighted.backward()
        buckets = (4 * batch.t[batch.t < 1]).long().to(model.device)
        errors = loss.errors[: len(buckets)]  # all, or none of a picture that does not count
        sums[0] += torch.stack([loss.text.detach() * text_count, text_count.to(model.device)])
        sums[1:].index_add_(0, buckets, torch.stack([errors, torch.ones_like(errors)], dim=1))
    return dict(zip(LOGGED, sums))


class Recomputed:
    """Activation checkpointing: the backward pass computes a block's inside again instead of keeping it."""

    def forward(self, *inputs):
        return checkpoint(super().forward, *inputs, use_reentrant=False, preserve_rng_state=False)


def wrap_blocks(model: Cheers, recompute: bool, compiled: bool) -> None:
    if compiled:  # blocks of all kinds and widths pass through one `Recomputed.forward`; the rest would stay as it is
        torch._dynamo.config.recompile_limit = 64
    kinds = {kind: type(f"Recomputed{kind.__name__}", (Recomputed, kind), {}) for kind in map(type, trained_blocks(model))}
    for block in trained_blocks(model):
        if recompute:
            block.__class__ = kinds[type(block)]
        if compiled:
            block.compile(dynamic=True)


# ---- the loop --------------------------------------------------------------------------------------------------

GRACE = 25  # seconds that a cluster, torchrun among them, leaves after SIGTERM


def fit(phase: str, model: nn.Module, recipe: Recipe, items: Dataset, step_function: Callable, args: argparse.Namespace,
        before_save: Callable[[int], dict] = lambda step: {}, flops: tuple = (0, 0, 0)) -> None:
    """Runs `step_function(model, item)` and the optimizers from the newest checkpoint to the last step."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups, matrices = ([{"params": [*trained.values()]}], []) if args.stage else toy_groups(trained)
    adam = torch.optim.AdamW(groups, recipe.lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True)
    muon = torch.optim.Muon([{"params": matrices}], recipe.lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    state = training_state(model, (adam, muon))
    run = {"stage": args.stage, "seed": args.seed, "batch": recipe.batch, "parts": list(recipe.parts)}
    run["data"] = {source.name: source.lines for source in items.sources}
    manifest = resume(args.out, phase, state, run)
    start = saved = manifest["step"]
    items.go_to(start, manifest["positions"])
    for file in ("metrics.jsonl", "skipped.jsonl"):
        shared(partial(forget, args.out / file, phase, start))
    # A worker's tensors wait in shared memory, each behind an open file: not too many of them.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError):  # macOS may refuse; tensors are no open files there
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    ahead = max(1, min(4, 64 * WORLD // recipe.batch))
    loader = DataLoader(items, batch_size=None, sampler=range(start, recipe.steps), num_workers=args.workers, prefetch_factor=ahead,
                        worker_init_fn=data.ignore_signals)
    lines = np.array(manifest["taken"]).reshape(2, -1)                             # (2, sources): seen, damaged
    stops, save_seconds, window = [], 0.0, Window(flops, args.device)
    # SIGTERM and Ctrl-C let the step finish and a checkpoint be written
    handlers = {number: signal.signal(number, lambda *_: stops.append(1)) for number in (signal.SIGTERM, signal.SIGINT)}
    bar = tqdm(loader, phase, initial=start, total=recipe.steps, smoothing=0.05, dynamic_ncols=True, disable=RANK > 0)
    for step, item in enumerate(bar, start):
        window.data_arrived()
        rate = learning_rate(step, recipe)
        for group in adam.param_groups + muon.param_groups:
            group["lr"] = group.get("pace", 1.0) * rate
        # On CPUs the plain attention kernel has the faster backward at the tiny model's sizes.
        kernel = sdpa_kernel(SDPBackend.MATH) if args.device.type == "cpu" else nullcontext()
        with torch.autocast(args.device.type, args.dtype, args.dtype != torch.float32), kernel:
            losses = step_function(model, item)
        for p in trained.values():  # of a part that had nothing to do: Adam counts the step all the same
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        norm = nn.utils.clip_grad_norm_(trained.values(), 1.0)
        for optimizer in (adam, muon):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        window.add(item, losses, norm)

        stopping, *new = total(torch.tensor([len(stops), *item.seen, *item.damaged])).tolist()
        done, last = step + 1, step + 1 == recipe.steps
        lines = lines + np.array(new, int).reshape(2, -1)
        write_lines(args.out / "skipped.jsonl", [{"phase": phase, "step": done} | entry for entry in item.skipped])
        data.check_damage(items.sources, *lines, args.skip_limit, args.out / "skipped.jsonl")
        saving = done % args.save_every == 0 or last or stopping
        if done % args.log_every == 0 or saving:
            if not torch.stack(window.norms).isfinite().all():
                raise ValueError(f"the gradient is not finite at step {done}; the last checkpoint is of step {saved}; "
                                 "lower --lr, and remove that one if it was too late")
            skipped = {"skipped": dict(zip(item.positions, lines[1].tolist())), "positions": item.positions}
            line = {"phase": phase, "step": done, "lr": rate} | window.close() | skipped
            write_lines(args.out / "metrics.jsonl", [line] * (RANK == 0))
            bar.set_postfix({name: f"{line[name]:.3f}" for name in ("loss", "text", "image", "psnr") if name in line})
        if stopping and shared(lambda: saved and save_seconds > GRACE):
            raise SystemExit(f"train.py: stopped; saving takes too long, the last checkpoint is of step {saved}")
        if saving:
            began, taken = time.monotonic(), {"step": done, "positions": item.positions, "taken": lines.tolist()}
            if not stopping and (scores := before_save(done)):  # a kill from here on loses no more than a kill before
                write_lines(args.out / "metrics.jsonl", [{"phase": phase, "step": done} | scores])
            looked = time.monotonic()
            save(args.out, phase, args.keep, state, taken | {"run": run})
            saved, save_seconds = done, time.monotonic() - looked
            window.began += time.monotonic() - began
        if stopping:
            say(f"train.py: stopped and saved after step {done}; the same command goes on from there")
            raise SystemExit(128 + signal.SIGTERM)
        window.waits_since = time.monotonic()
    for number, handler in handlers.items():
        signal.signal(number, handler)


# ---- command line ----------------------------------------------------------------------------------------------

def parse_arguments(options: list[str] | None) -> argparse.Namespace:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain, allow_abbrev=False)
    add = parser.add_argument
    add("--stage", type=int, choices=STAGES, help="the paper's recipe; without it the tiny model's")
    add("--data", nargs="+", default=[], metavar="FILE[:WEIGHT]", help="JSON lines; the toy world when left out")
    add("--images", type=Path, metavar="DIR", help="where pictures are; the folder of their file when left out")
    add("--init", metavar="NAME|FOLDER", help="checkpoint to train further; the tiny model from nothing when left out")
    add("--components", nargs=3, metavar=("QWEN", "SIGLIP", "VAE"), help="a fresh start: two names or folders and ae.safetensors")
    add("--out", type=Path, metavar="DIR", help="a run that is there already goes on (runs/tiny)")
    add("--steps", type=int, help="steps in all; the recipe's when left out, as --batch, --lr, --schedule and --parts")
    add("--vae-steps", type=int, default=3_000, help="steps of the tiny model's VAE, before everything else")
    add("--batch", type=int, help="samples per step, of all processes together")
    add("--micro-batch", type=int, help="samples at a time per process; 4 with --stage, else all")
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
    cores = (os.cpu_count() or 2) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    add("--workers", type=int, default=max(1, min(8, cores - 1)), help="processes that read samples, per process")
    add("--dtype", choices=("float32", "bfloat16"), help="of matrix products; bfloat16 on GPUs, else float32")
    add("--export", type=Path, metavar="CHECKPOINT", help="write a run's checkpoint to --out in the official layout; train nothing")
    add("--plan", action="store_true", help="print what a run would need, and train nothing")
    add("--gpus", type=int, default=1, help="for --plan")
    add("--mfu", type=float, default=0.4, help="for --plan: share of the A100's peak that is reached")
    args = parser.parse_args(options)
    for name in ("steps", "vae_steps", "batch", "micro_batch", "save_every", "log_every", "keep", "replicas", "gpus", "workers"):
        if (value := getattr(args, name)) is not None and not 1 <= value < 10_000_000:
            parser.error(f"--{name.replace('_', '-')} must be at least 1 and less than ten million")
    for wrong, sentence in (
        (args.lr is not None and not 0 < args.lr < math.inf or args.seed < 0, "--lr must be positive and --seed not negative"),
        (not 0 < args.mfu <= 1 or not 0 <= args.skip_limit <= 1, "--mfu and --skip-limit are shares, between 0 and 1"),
        (bool(args.init) and bool(args.components), "--init and --components are two ways to start; choose one"),
        (args.stage and not args.plan and not args.data, "--stage needs samples: --data FILE ..."),
        (args.stage and not args.plan and not args.init and not args.components,
         "--stage needs weights to start from: --init NAME|FOLDER, or --components QWEN SIGLIP VAE"),
        (args.images and not args.images.is_dir(), f"there is no folder {args.images}"),
        (args.export and not args.out, "--export needs a folder to write to: --out DIR"),
        (args.export and WORLD > 1, "--export runs in one process; start it without torchrun"),
    ):
        if wrong:
            parser.error(sentence)
    args.out = args.out or Path("runs/tiny")
    return args


def main(options: list[str] | None = None, kind: type[Cheers] = Cheers) -> None:
    """Trains as the options say (the command line's when left out), `--init` opened as a model of that kind."""
    args = parse_arguments(options)
    # Both are about uses other than ours: saving without processes is meant, and nothing is changed in place.
    warnings.filterwarnings("ignore", "torch.distributed is disabled|FSDP2-wrapped module .* returned a view")
    given = {name: getattr(args, name) for name in ("lr", "schedule", "batch", "steps", "parts")}
    recipe = replace(STAGES.get(args.stage, TOY), **{name: value for name, value in given.items() if value is not None})
    args.micro_batch = args.micro_batch or (4 if args.stage else recipe.batch)
    processes = args.gpus if args.plan else WORLD
    if recipe.batch % processes or processes % args.replicas:
        raise ValueError(f"--batch {recipe.batch} must be a multiple of the {processes} processes, and these of --replicas")
    if args.plan:
        with torch.device("meta"):
            model = Cheers(CheersConfig()) if args.stage else tiny_model()
        freeze(model, recipe)
        matrices = [] if args.stage else toy_groups(dict(model.named_parameters()))[1]
        return plan(model, recipe, args, matrices, partial(wrap_blocks, recompute=True, compiled=False))
    if args.export:
        return export(args.export, args.out)
    data.make_folder(args.out, args.out)
    args.lock = lock(args.out) if RANK == 0 else None
    args.device = start_process()
    args.dtype = getattr(torch, args.dtype or ("float32" if args.device.type == "cpu" else "bfloat16"))
    torch.set_flush_denormal(True)  # denormal numbers are many times slower on CPUs
    torch.manual_seed(args.seed)
    if args.components:
        model = Cheers.from_components(*args.components, device="cpu")
    else:
        model = kind.from_pretrained(args.init, args.device, torch.float32) if args.init else tiny_model()
    if model.tokenizer is None:
        raise ValueError(f"{args.init or args.components[0]} has no tokenizer; add tokenizer.json to it")
    model.to(args.device)
    freeze(model, recipe)
    opening = partial(data.open_sources, args.data, args.images, args.out, recipe.mix, model.config.siglip.image_size)
    shared(lambda: opening() and None)  # process 0 builds the indices of lines before the others read them
    sources, weights = opening()
    if not args.init and not args.components:  # a VAE so small that every process trains it alike, on the same pictures
        model.vae.requires_grad_(True)
        pictures = data.ToyPictures(args.vae_steps, 2 * recipe.batch, model.config, args.seed)
        fit("vae", model.vae, replace(recipe, lr=args.lr or 2e-3, steps=args.vae_steps), pictures, vae_step, args)
        for tensor in model.vae.state_dict().values() if WORLD > 1 else ():
            dist.broadcast(tensor, 0)  # kernels on GPUs need not agree to the last bit
        measure_latents(model.vae, pictures)
        model.pixel_decoder.load_state_dict(model.vae.state_dict(), strict=False)
        model.vae.requires_grad_(False)
    model.train()
    # what `look` and `export` need besides weights, of the run that begins or goes on
    there = all((args.out / name).exists() for name in ("config.json", "tokenizer.json"))
    shared(lambda: there and checkpoints(args.out, "cheers") or model.save_configuration(args.out, torch.bfloat16))
    say(json.dumps(asdict(recipe) | {"data": {s.name: w for s, w in zip(sources, weights)}, "processes": WORLD, "dtype": str(args.dtype)}))
    flops = (0.0, 0.0, 0.0)
    if args.device.type == "cuda":
        freeze(counted := kind.from_configuration(args.out), recipe)
        flops = unit_costs(counted)
    wrap_blocks(model, bool(args.stage) and not args.keep_activations, args.compile)
    if WORLD > 1:
        shard(model, args.device, args.dtype, args.replicas)
    items = data.Mixture(sources, weights, recipe.batch, args.micro_batch, args.seed, model.tokenizer,
                         model.config, recipe.steps, recipe.shift, RANK, WORLD)
    fit("cheers", model, recipe, items, cheers_step, args, lambda step: {} if args.data else look(model, args.out, step), flops)
    tensors = full_tensors(model, torch.bfloat16)
    if RANK == 0:
        model.save_pretrained(args.out / "model", weights=tensors)
        print(args.out / "model")
    if WORLD > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"train.py: {error}")
