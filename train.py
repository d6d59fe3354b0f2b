"""Training: without options, the tiny model on the toy world, from nothing, on a CPU or one GPU.

    python train.py --out runs/tiny                        # VAE first, then everything else
    python train.py --init weights/tiny --out runs/more    # trains a checkpoint further

The recipe is the paper's (arXiv 2603.12793, sections 2.2 and 2.3): L_AR + L_FM, t uniform in (0, 1), text dropped with
probability 0.2, AdamW, clipping at 1.0, the VAE frozen, its decoder's copy D trained with everything else. Metrics go to
OUT/metrics.jsonl, sample sheets to OUT/samples-*.png, checkpoints to OUT/vae-* and OUT/cheers-*, the finished model to OUT/model.
"""

import argparse
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import data
import shapes
from cheers import Cheers, CheersConfig, SpecialTokens, best_device
from qwen import QwenConfig
from sample import generate_images
from siglip import SigLIPConfig
from vae import PATCH, VAE, VAEConfig

# ---- the tiny model --------------------------------------------------------------------------------------------


def tiny_model() -> Cheers:
    """6 M parameters, 32x32 pictures, VAE factor 4: 8x8 latents, 16 visual tokens."""
    tokenizer = data.toy_tokenizer()
    tokens = ("<|im_end|>", "<image>", "<image_gen>", "<im_start>", "<im_end>", "<no_mean>")
    vocabulary = math.ceil(tokenizer.backend.get_vocab_size() / 64) * 64
    model = Cheers(CheersConfig(
        vae=VAEConfig(resolution=32, ch=16, ch_mult=(1, 2), num_res_blocks=1, z_channels=2, norm_groups=8),
        siglip=SigLIPConfig(128, 512, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=4),
        qwen=QwenConfig(192, 768, 4, 4, 2, vocabulary, rope_theta=10_000.0, max_position_embeddings=1024),
        head_depths=(2, 2),
        special=SpecialTokens(*(tokenizer.id(token) for token in tokens)),
    ))
    model.initialise()
    model.tokenizer, model.generation = tokenizer, {"steps": 40, "guidance": 3.0, "shift": 0.5}
    return model


# ---- one step of each phase ------------------------------------------------------------------------------------


def vae_step(vae: VAE, item: tuple[Tensor, Tensor, Tensor, bool]) -> dict[str, Tensor]:
    """L1 + L2 reconstruction of sampled latents, and a small pull of the posterior towards N(0, 1). In the second half also
    E(D(z_t)) = z_t: a decoder of clean scenes only turns noise into a plain background, from which no velocity can be read."""
    *tensors, late = item
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
    return {"loss": total.detach(), "psnr": -10 * squared.detach().log10(), "cycle": cycle.detach()}


@torch.no_grad()
def measure_latents(vae: VAE, pictures: data.ToyPictures) -> None:
    """Stores mean and variance of every latent channel, so that latents are normalised from here on."""
    unseen = [pictures[1_000_000 + k][0].to(vae.bn.running_mean.device) for k in range(32)]
    latents = F.pixel_unshuffle(torch.cat([vae.encoder(pixels).chunk(2, dim=1)[0] for pixels in unseen]), PATCH)
    vae.bn.running_mean.copy_(latents.mean(dim=(0, 2, 3)))
    vae.bn.running_var.copy_(latents.var(dim=(0, 2, 3)))


def cheers_step(model: Cheers, batch: data.Batch) -> dict[str, Tensor]:
    """The training step: L_total = L_AR + λ·L_FM of one batch, and its gradients."""
    loss = model.loss(batch)
    loss.total.backward()
    return {"loss": loss.total.detach(), "text": loss.text.detach(), "image": loss.image.detach()}


# ---- looking at the result -------------------------------------------------------------------------------------


def look(model: Cheers, out: Path, step: int, count: int = 8, seed: int = 0) -> dict[str, float]:
    """Paints `count` pictures for each of the six tasks -> OUT/samples-STEP.png (a row per task), and each task's score."""
    rng = np.random.default_rng([seed, 2])
    prompts = [shapes.task_prompts(task, count, rng) for task in shapes.TASKS]
    model.eval()
    pixels = generate_images(model, sum(prompts, []), steps=20, seed=seed).cpu()
    model.train()
    scores = {
        task: float(np.mean([shapes.score(p, prompt).correct for p, prompt in zip(rows, asked)]))
        for task, asked, rows in zip(shapes.TASKS, prompts, pixels.split(count))
    }
    data.contact_sheet(pixels, count).save(out / f"samples-{step:07d}.png")
    return scores | {"overall": float(np.mean(list(scores.values())))}


# ---- the loop --------------------------------------------------------------------------------------------------


# Adam moves all weights equally fast, so an output that sums over many inputs runs ahead of a word's embedding, and pictures
# drown the text. From nothing, words need to learn faster than the projector.
PACES = (("qwen.embed_tokens.", 5.0), ("projector.", 0.2))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 2 % of the steps, then a cosine to zero."""
    return peak * min((step + 1) / max(1, round(0.02 * steps)), 0.5 + 0.5 * math.cos(math.pi * step / steps))


def save(out: Path, phase: str, step: int, keep: int, **parts) -> None:
    """A checkpoint is complete or invisible: written under another name, then renamed. The newest `keep` stay."""
    unfinished, folder = out / ".partial", out / f"{phase}-{step:07d}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    torch.save({name: part.state_dict() for name, part in parts.items()}, unfinished / "state.pt")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(unfinished, folder)
    for old in sorted(out.glob(f"{phase}-*"))[:-keep]:
        shutil.rmtree(old)


def resume(out: Path, phase: str, **parts) -> int:
    """Loads the newest checkpoint of a phase into its parts -> the step to go on with, 0 when there is none."""
    folders = sorted(out.glob(f"{phase}-*"))
    if not folders:
        return 0
    try:
        state = torch.load(folders[-1] / "state.pt", map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except Exception as error:  # damaged files and other models raise many kinds
        raise ValueError(f"cannot go on from {folders[-1]} ({error}); remove it or choose another --out") from None
    return int(folders[-1].name.rpartition("-")[2])


def log_line(out: Path, line: dict) -> None:
    with open(out / "metrics.jsonl", "a") as log:
        log.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()}) + "\n")


@contextmanager
def compute(device: torch.device) -> Iterator[None]:
    """bf16 compute with fp32 weights, where the hardware has it."""
    on_cpu, cpu = device.type == "cpu", torch.cpu.get_capabilities()
    fast = not on_cpu or any(cpu.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    # On CPUs the plain attention kernel has the faster backward at the tiny model's sizes.
    with torch.autocast(device.type, torch.bfloat16, fast), sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext():
        yield


def fit(phase: str, model: nn.Module, batches: Dataset, step_function: Callable, steps: int, args, watch=None) -> None:
    """Runs `step_function(item)`, which fills the gradients and returns what to log, for every item of `batches`."""
    peak = args.lr or {"vae": 2e-3, "cheers": 1e-3}[phase]
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            pace = next((pace for part, pace in PACES if name.startswith(part)), 1.0)
            groups.setdefault(pace, []).append(parameter)
    parameters = sum(groups.values(), [])
    optimizer = torch.optim.AdamW(
        [{"params": group, "pace": pace} for pace, group in groups.items()],
        lr=peak, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True,
    )
    start = resume(args.out, phase, model=model, optimizer=optimizer)
    workers = max(1, (os.cpu_count() or 2) - 1)
    loader = DataLoader(batches, batch_size=None, sampler=range(start, steps), num_workers=workers, prefetch_factor=8)
    bar = tqdm(loader, phase, initial=start, total=steps, smoothing=0.05, dynamic_ncols=True)
    sums, count, since = {}, 0, time.monotonic()
    device = next(model.parameters()).device
    for step, item in enumerate(bar, start):
        for group in optimizer.param_groups:
            group["lr"] = group["pace"] * learning_rate(step, steps, peak)
        with compute(device):
            logged = step_function(item)
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, value in (logged | {"gradient_norm": norm}).items():
            sums[name] = sums.get(name, 0.0) + float(value)
        count += 1
        done = step + 1
        if done % args.log_every == 0 or done == steps:
            means = {name: total / count for name, total in sums.items()}
            rate = count / (time.monotonic() - since)
            log_line(args.out, {"phase": phase, "step": done, "lr": learning_rate(step, steps, peak), "steps_per_second": rate} | means)
            bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
            sums, count = {}, 0
        if done % args.save_every == 0 or done == steps:
            save(args.out, phase, done, args.keep, model=model, optimizer=optimizer)
            if watch:
                log_line(args.out, {"phase": phase, "step": done} | watch(done))
        if not count:
            since = time.monotonic()


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain, allow_abbrev=False)
    add = parser.add_argument
    add("--init", metavar="NAME|FOLDER", help="checkpoint to train further; the tiny model from nothing when left out")
    add("--out", type=Path, default=Path("runs/tiny"), metavar="DIR", help="a run that is there already goes on")
    add("--steps", type=int, default=20_000)
    add("--vae-steps", type=int, default=3_000, help="steps of the VAE, before everything else")
    add("--batch", type=int, default=16, help="samples per step; the VAE takes twice as many pictures")
    add("--lr", type=float, help="peak learning rate")
    add("--seed", type=int, default=0)
    add("--save-every", type=int, default=1_000, help="steps between checkpoints, each with a sample sheet")
    add("--log-every", type=int, default=100)
    add("--keep", type=int, default=2, help="checkpoints to keep")
    args = parser.parse_args()
    for name in ("steps", "vae_steps", "batch", "save_every", "log_every", "keep"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.lr is not None and not 0 < args.lr < math.inf or args.seed < 0:
        parser.error("--lr must be positive and --seed not negative")
    torch.set_flush_denormal(True)  # denormal numbers are many times slower on CPUs
    torch.manual_seed(args.seed)
    device = best_device()
    model = Cheers.from_pretrained(args.init, device, torch.float32) if args.init else tiny_model().to(device)
    if model.tokenizer is None:
        parser.error(f"{args.init} has no tokenizer; add tokenizer.json to it")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"cannot write {args.out} ({error.strerror}); choose another --out")
    if not args.init:
        pictures = data.ToyPictures(args.vae_steps, 2 * args.batch, model.config, args.seed)
        fit("vae", model.vae, pictures, partial(vae_step, model.vae), args.vae_steps, args)
        measure_latents(model.vae, pictures)
        model.pixel_decoder.load_state_dict(model.vae.state_dict(), strict=False)
    model.vae.requires_grad_(False)
    model.train()
    batches = data.ToySteps(args.steps, args.batch, args.seed, model.tokenizer, model.config)
    fit("cheers", model, batches, partial(cheers_step, model), args.steps, args, partial(look, model, args.out))
    model.eval().to(torch.bfloat16).save_pretrained(args.out / "model")
    print(args.out / "model")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\ntrain.py: interrupted; the same command goes on from the last checkpoint")
