"""Training: without options, the tiny model on the toy world, from nothing, on a CPU or one GPU.

    python train.py --out runs/tiny                        # VAE first, then everything else
    python train.py --init weights/tiny --out runs/more    # trains a checkpoint further

The recipe is the paper's (arXiv 2603.12793, sections 2.2 and 2.3): L_AR + L_FM, t uniform in (0, 1), text dropped with
probability 0.2, AdamW, clipping at 1.0, the VAE frozen, its decoder's copy D trained with everything else. Metrics go to
OUT/metrics.jsonl, sample sheets to OUT/samples-*.png, checkpoints to OUT/step-*, the finished model to OUT/model.
"""

import argparse
import json
import math
import os
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import tokenizers
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import data
import shapes
from cheers import Cheers, CheersConfig, SpecialTokens, best_device
from qwen import QwenConfig, SYSTEM, Tokenizer, qwen_bpe
from siglip import SigLIPConfig
from vae import VAE, VAEConfig

# ---- the tiny model --------------------------------------------------------------------------------------------


def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE over the toy world's words, with Qwen's chat tokens."""
    rng = np.random.default_rng(0)
    texts = [SYSTEM, "system\nuser\nassistant", data.PAINT_REQUEST]
    for _ in range(4000):
        for _, make in data.TOY_SOURCES:
            texts += [turn["value"] for turn in make(rng, 4, 32)[0]]
    backend = qwen_bpe(tokenizers.models.BPE())
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return Tokenizer(backend)


def tiny_model() -> Cheers:
    """6 M parameters, 32x32 pictures, VAE factor 4: 8x8 latents, 16 visual tokens."""
    tokenizer = tiny_tokenizer()
    tokens = ("<|im_end|>", "<image>", "<image_gen>", "<im_start>", "<im_end>", "<no_mean>")
    vocabulary = math.ceil(tokenizer.backend.get_vocab_size() / 64) * 64
    config = CheersConfig(
        vae=VAEConfig(resolution=32, ch=16, ch_mult=(1, 2), num_res_blocks=1, z_channels=4, norm_groups=8),
        siglip=SigLIPConfig(128, 512, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=4),
        qwen=QwenConfig(192, 768, 4, 4, 2, vocabulary, rope_theta=10_000.0, max_position_embeddings=1024),
        head_depths=(2, 2),
        special=SpecialTokens(*(tokenizer.id(token) for token in tokens)),
    )
    model = Cheers(config)
    model.initialise()
    model.tokenizer = tokenizer
    model.generation = {"steps": 40, "guidance": 3.0, "shift": 0.5}
    return model


# ---- what is trained on ----------------------------------------------------------------------------------------


class ToySteps(Dataset):
    """Item k is the batch of step k, a list of micro-batches of similar lengths so that little is padding."""

    def __init__(self, steps: int, batch: int, seed: int, tokenizer: Tokenizer, config: CheersConfig, micro: int = 2):
        self.steps, self.batch, self.seed, self.micro = steps, batch, seed, micro
        self.tokenizer, self.config = tokenizer, config

    def __getitem__(self, step: int) -> list[data.Batch]:
        # The world widens: one object, then two, then all four.
        progress = step / self.steps
        objects = 1 if progress < 0.08 else 2 if progress < 0.35 else 4
        lines = range(step * self.batch, (step + 1) * self.batch)
        samples = [data.toy_sample(line, objects, self.seed, self.tokenizer, self.config) for line in lines]
        samples.sort(key=lambda sample: len(sample.ids))
        size = math.ceil(self.batch / self.micro)
        return [data.collate(samples[i : i + size], self.config) for i in range(0, self.batch, size)]


class ToyPictures(Dataset):
    """Item k is the batch of pictures of VAE step k, (B, 3, S, S)."""

    def __init__(self, batch: int, side: int, seed: int):
        self.batch, self.side, self.seed = batch, side, seed

    def __getitem__(self, step: int) -> Tensor:
        rng = np.random.default_rng([self.seed, 1, step])
        pictures = [shapes.draw(shapes.random_scene(rng), self.side) for _ in range(self.batch)]
        return torch.stack([data.to_pixels(picture) for picture in pictures])


# ---- one step of each phase ------------------------------------------------------------------------------------


def vae_step(vae: VAE, pixels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """L1 + L2 reconstruction of sampled latents, and a small pull of the posterior towards N(0, 1)."""
    mean, log_variance = vae.encoder(pixels).chunk(2, dim=1)
    log_variance = log_variance.float().clamp(-20, 10)
    noise = torch.randn(mean.shape, generator=generator).to(mean.device)
    reconstruction = vae.decoder(mean + noise * torch.exp(0.5 * log_variance)).float()
    kl = 0.5 * (mean.float() ** 2 + log_variance.exp() - 1 - log_variance).mean()
    squared = F.mse_loss(reconstruction, pixels)
    total = squared + 0.1 * F.l1_loss(reconstruction, pixels) + 1e-5 * kl
    total.backward()
    return {"loss": total.detach(), "psnr": -10 * squared.detach().log10(), "kl": kl.detach()}


@torch.no_grad()
def measure_latents(vae: VAE, pictures: ToyPictures) -> None:
    """Stores mean and variance of every latent channel, so that latents are normalised from here on."""
    device = vae.bn.running_mean.device
    latents = torch.cat([F.pixel_unshuffle(vae.encoder(pictures[-1 - k].to(device)).chunk(2, 1)[0], 2) for k in range(32)])
    vae.bn.running_mean.copy_(latents.mean(dim=(0, 2, 3)))
    vae.bn.running_var.copy_(latents.var(dim=(0, 2, 3)))


def cheers_step(model: Cheers, micro_batches: list[data.Batch]) -> dict[str, Tensor]:
    """The training step: losses of all micro-batches weighted by the whole batch's counts, so that it does not matter how
    the batch is cut."""
    special = model.config.special
    tokens = (model.config.siglip.image_size // model.config.multiple) ** 2
    text_total = sum(int((batch.labels[:, 1:] != data.IGNORE).sum()) for batch in micro_batches)
    image_total = sum(int((batch.ids == special.image_gen).sum()) // tokens for batch in micro_batches)
    text = image = torch.zeros((), device=model.device)
    for batch in micro_batches:
        loss = model.loss(batch.to(model.device))
        share_text = loss.text * (loss.text_count / max(text_total, 1))
        share_image = loss.image * (loss.image_count / max(image_total, 1))
        (share_text + share_image).backward()
        text, image = text + share_text.detach(), image + share_image.detach()
    return {"loss": text + image, "text": text, "image": image}
