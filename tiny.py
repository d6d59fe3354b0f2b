"""The tiny model: its sizes, its own VAE, and a look at what it paints while it learns."""

import math
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import data
import shapes
from cheers import Cheers, CheersConfig, SpecialTokens, best_device
from parallel import full_tensors
from qwen import CHEERS_TOKENS, QwenConfig
from sample import generate_images
from siglip import SigLIPConfig
from vae import PATCH, VAE, VAEConfig


def toy_groups(trained: dict[str, nn.Parameter]) -> tuple[list[dict], list[nn.Parameter]]:
    """Parameters by name -> groups for AdamW, and the matrices inside of the transformers, for Muon.

    Muon gives all directions of a matrix's update the same size, so that what few samples ask for, the shape of a small object
    say, is learnt as fast as what all ask for. Adam moves all weights equally fast, so the outputs that sum over many inputs
    run ahead of a word's embedding, and pictures drown the text: from nothing, words need to learn faster."""
    words, matrices, rest = [], [], []
    for name, p in trained.items():
        inside = re.search(r"\.(layers|blocks|mlp)\.", name) and "modulation" not in name and p.ndim == 2
        (words if name == "qwen.embed_tokens.weight" else matrices if inside else rest).append(p)
    return [{"params": rest}, {"params": words, "pace": 5.0}], matrices


def tiny_model() -> Cheers:
    """6 M parameters, 32x32 pictures, VAE factor 4: 8x8 latents, 16 visual tokens."""
    tokenizer = data.toy_tokenizer()
    vocabulary = math.ceil(tokenizer.backend.get_vocab_size() / 64) * 64
    model = Cheers(CheersConfig(
        vae=VAEConfig(resolution=32, ch=16, ch_mult=(1, 2), num_res_blocks=1, z_channels=2, norm_groups=8),
        siglip=SigLIPConfig(128, 512, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=4),
        qwen=QwenConfig(192, 768, 4, 4, 2, vocabulary, rope_theta=10_000.0, max_position_embeddings=1024),
        head_depths=(2, 2),
        special=SpecialTokens(*map(tokenizer.backend.token_to_id, ("<|im_end|>", *CHEERS_TOKENS))),
    ))
    model.initialise()
    model.tokenizer, model.generation = tokenizer, {"steps": 40, "guidance": 3.0, "shift": 1.0}
    return model


def vae_step(vae: VAE, step: data.Step) -> dict[str, Tensor]:
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
    loss = squared + 0.1 * F.l1_loss(reconstruction, pixels) + 5e-5 * kl + 0.02 * cycle
    loss.backward()
    values = {"loss": loss, "psnr": -10 * squared.log10(), "cycle": cycle}
    return {name: torch.stack([value.detach(), torch.ones_like(value)]) for name, value in values.items()}


@torch.no_grad()
def measure_latents(vae: VAE, pictures: data.ToyPictures) -> None:
    """Stores mean and variance of every latent channel, so that latents are normalised from here on."""
    unseen = [pictures[1_000_000 + k].batches[0][0].to(vae.bn.running_mean.device) for k in range(32)]
    latents = F.pixel_unshuffle(torch.cat([vae.encoder(pixels).chunk(2, dim=1)[0] for pixels in unseen]), PATCH)
    vae.bn.running_mean.copy_(latents.mean(dim=(0, 2, 3)))
    vae.bn.running_var.copy_(latents.var(dim=(0, 2, 3)))


def look(model: Cheers, out: Path, step: int) -> dict[str, float]:
    """Paints eight pictures for each of the six tasks -> OUT/samples-STEP.png (a row per task), and each task's score."""
    if not (weights := full_tensors(model, torch.float32)):
        return {}
    painter = Cheers.from_configuration(out)
    painter.load_state_dict(weights, assign=True)
    rng, count = np.random.default_rng([0, 2]), 8
    prompts = [shapes.task_prompts(task, count, rng) for task in shapes.TASKS]
    pixels = generate_images(painter.eval().to(best_device()), sum(prompts, []), steps=20, seed=0).cpu()
    data.contact_sheet(pixels, count).save(out / f"samples-{step:07d}.png")
    right = [[shapes.score(p, prompt).correct for p, prompt in zip(*row)] for row in zip(pixels.split(count), prompts)]
    return {task: float(np.mean(row)) for task, row in zip(shapes.TASKS, right)} | {"overall": float(np.mean(right))}
