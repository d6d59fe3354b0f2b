"""Knowing before paying: parameters, memory, FLOP and days of a training run, without running it.

Models are on torch's meta device, where nothing is computed and torch itself counts.
"""

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cheers import Cheers, attention_mask

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
            hidden = model.qwen(x, torch.arange(length)[None], mask)
            if painted:
                h = hidden[:, : painted * m].reshape(painted, m, -1)
                outputs.append(model.velocity(h, torch.zeros(painted), details[:painted]).float().sum())
            if supervised:
                outputs.append(model.qwen.logits(hidden[0, :supervised]).float().sum())
        if (result := sum(outputs)).requires_grad:  # else all that the sample touches is frozen
            result.backward()
    return counter.get_total_flops(), sum(storage.nbytes() for storage in kept.values())


def unit_costs(model: Cheers) -> tuple[float, float, float]:
    """FLOP of a training step for each token, for each picture, and in addition for each picture to paint."""
    m = (model.config.siglip.image_size // model.config.multiple) ** 2
    text, seen, painted = (cost(model, *sample)[0] for sample in ((128, 0, 0, 64), (m + 128, 1, 0, 64), (m + 128, 1, 1, 64)))
    return text / 128, seen - text * (m + 128) / 128, painted - seen


def bytes_per_process(model: nn.Module, shards: int, matrices: list[nn.Parameter]) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer in process 0, exactly: FSDP2 cuts the first dimension into equal pieces. The
    frozen VAE is held whole by every process. `matrices` are trained by Muon, all else by AdamW."""
    muon = {id(p) for p in matrices}
    sizes = {"weights": 0, "gradients": 0, "optimizer": 0}
    for name, p in model.named_parameters():
        here = p.numel() if name.startswith("vae.") else math.ceil(p.shape[0] / shards) * (p.numel() // p.shape[0])
        sizes["weights"] += 4 * here
        sizes["gradients"] += 4 * here * p.requires_grad
        # AdamW keeps two moments and a counter, Muon one moment
        sizes["optimizer"] += (4 * here if id(p) in muon else 8 * here + 4) * p.requires_grad
    return sizes


def plan(model: Cheers, recipe, args: argparse.Namespace, matrices: list[nn.Parameter],
         recompute: Callable[[Cheers], None]) -> None:
    """Prints what a run of `recipe` would need. Muon trains `matrices`; `recompute` switches activation checkpointing on."""
    for part, module in (*model.named_children(), ("all", model)):
        numbers = [(p.numel(), p.requires_grad) for p in module.parameters()]
        print(f"{part:14} {sum(n for n, _ in numbers):14,} parameters, {sum(n for n, on in numbers if on):14,} trained")
    micro = min(args.micro_batch, math.ceil(recipe.batch / args.gpus))
    sizes, alone = (bytes_per_process(model, shards, matrices) for shards in (args.gpus // args.replicas, 1))
    m = (model.config.siglip.image_size // model.config.multiple) ** 2
    samples = {  # tokens, pictures, of these to paint, supervised tokens; 64 tokens of prompt, 64 of answer
        "understanding": (m + 128, 1, 0, 64), "generation": (m + 64, 1, 1, 2),
        "editing": (2 * m + 64, 2, 1, 2), "text": (128, 0, 0, 64)}
    flops = {kind: cost(model.to(torch.bfloat16), *sample)[0] for kind, sample in samples.items()}
    if args.stage and not args.keep_activations:
        recompute(model)
    activations = micro * max(cost(model, *sample)[1] for sample in samples.values())
    print(f"\nper GPU, {args.gpus} of them in {args.replicas} replicas, {micro} samples at a time")
    for name, size in sizes.items():
        print(f"{name:14} {size:18,} bytes, exactly")
    print(f"{'activations':14} {activations:18,} bytes, an estimate: bf16, the largest kind of sample, without workspace")
    print(f"{'together':14} {(sum(sizes.values()) + activations) / 1e9:18.1f} GB\n")
    for kind, each in flops.items():
        print(f"{kind:14} {each / 1e12:10.3f} TFLOP per sample")
    mean = sum(recipe.mix.get(kind, 0) * each for kind, each in flops.items()) / sum(recipe.mix.values())
    rate = args.gpus * args.mfu * PEAKS["A100"] / mean
    days = recipe.steps * recipe.batch / rate / 86_400
    print(f"{'the mix':14} {mean / 1e12:10.3f} TFLOP per sample: {rate:,.1f} samples/s on A100 at {args.mfu:.0%} MFU, {days:,.2f} days")
    stored = alone["weights"] + alone["optimizer"]
    print(f"{'a checkpoint':14} {stored / 1e9:10.1f} GB, {stored / 2e9:,.0f} s at 2 GB/s")
