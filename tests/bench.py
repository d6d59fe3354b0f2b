"""What each waste of the released code costs, measured.

    python tests/bench.py [--size official|reduced|tiny] [--device D] [--compile] [--json]

The same weights, modules, kernels, precision and noise run twice: as this repository runs them, and with one waste of the
release added, then with all of them. A waste is a few lines below that wrap a part of the model and change no result; that is
checked. Runs take turns, and a ratio is the median over the turns of (time with the waste / time without). On a GPU the model
has the official size, in bfloat16; on a CPU (unless asked) all widths and the side are a quarter of it, in float32, so that the
parts keep about their shares of the arithmetic. Weights are random: the time does not depend on them.
"""

import argparse
import copy
import itertools
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))
from cheers import IGNORE, Batch, Cheers, CheersConfig, SpecialTokens, attention_mask, best_device  # noqa: E402
from qwen import QwenConfig  # noqa: E402
from sample import denoise, extend, generate_texts, keep_freed_memory, schedule  # noqa: E402
from siglip import SigLIPConfig  # noqa: E402
from vae import VAEConfig  # noqa: E402

PROMPT, ANSWER = 64, 16  # tokens


def quarter(side: int, layers: int | None = None) -> CheersConfig:
    """All widths of the official model divided by 4; the depths too when `layers` is given."""
    depths = dict(num_hidden_layers=layers) if layers else {}
    return CheersConfig(
        VAEConfig(resolution=side, ch=32, z_channels=8, norm_groups=8),
        SigLIPConfig(hidden_size=288, intermediate_size=1076, num_attention_heads=4, image_size=side,
                     **dict(num_hidden_layers=27) | depths),
        QwenConfig(hidden_size=384, intermediate_size=2240, num_attention_heads=3, num_key_value_heads=1,
                   vocab_size=37984, **dict(num_hidden_layers=28) | depths),
        (layers, layers) if layers else (7, 3))


SIZES = {"official": CheersConfig, "reduced": lambda: quarter(128), "tiny": lambda: quarter(32, 1)}


# ---- the wastes: each wraps a part of the model, and no result changes -------------------------------------------

def tokenizer_per_branch(model: Cheers) -> None:
    """D, SigLIP2 and the projector run for the conditional branch, then again for the unconditional one."""
    once = model.tokenize_image
    model.tokenize_image = lambda latents: (once(latents), once(latents))[1]


def branches_in_turn(model: Cheers) -> None:
    """The language model and the head run on one branch after the other."""
    qwen, head = model.qwen.forward, model.head.forward

    def qwen_in_turn(x: Tensor, positions: Tensor, mask: Tensor | None, memory: Tensor) -> Tensor:
        masks = (None, None) if mask is None else mask.chunk(2)
        return torch.cat([qwen(*half) for half in zip(x.chunk(2), positions.chunk(2), masks, memory.chunk(2, dim=2))])

    def head_in_turn(hidden: Tensor, t: Tensor, details: Tensor, grid: tuple[int, int]) -> tuple[Tensor, ...]:
        halves = [head(*half, grid) for half in zip(hidden.chunk(2), t.chunk(2), details.chunk(2))]
        return tuple(torch.cat(outputs) for outputs in zip(*halves))

    model.qwen.forward, model.head.forward = qwen_in_turn, head_in_turn


def embedding_again(model: Cheers) -> None:
    """The gate's details are a second patch embedding of the same pixels."""
    model.siglip.register_forward_hook(lambda siglip, pixels, outputs: (outputs[0], siglip.embeddings(*pixels)))


def mask_per_head(model: Cheers) -> None:
    """Attention gets a mask of rows × heads × all tokens × all tokens, int64 at first."""
    forward, heads = model.qwen.forward, model.config.qwen.num_attention_heads

    def masked(x: Tensor, positions: Tensor, mask: Tensor | None, memory: Tensor) -> Tensor:
        (rows, new), tokens = x.shape[:2], memory.shape[4]
        whole = torch.ones(rows, heads, tokens, tokens, dtype=torch.int64, device=x.device)
        if mask is not None:
            whole[:, :, -new:] = mask
        return forward(x, positions, whole[:, :, -new:].bool(), memory)

    model.qwen.forward = masked


def growing_cache(model: Cheers) -> None:
    """Each evaluation copies the keys and values of all tokens so far into larger tensors."""
    forward = model.qwen.forward

    def grown(x: Tensor, positions: Tensor, mask: Tensor | None, memory: Tensor) -> Tensor:
        copied = memory.clone()
        hidden = forward(x, positions, mask, copied)
        memory[..., -x.shape[1] :, :] = copied[..., -x.shape[1] :, :]
        return hidden

    model.qwen.forward = grown


def logits_everywhere(model: Cheers) -> None:
    """Logits of every position, of which few are used."""
    model.qwen.register_forward_hook(lambda qwen, inputs, hidden: (hidden, qwen.logits(hidden))[0])


def velocity_decoded(model: Cheers) -> None:
    """Training decodes the predicted velocity to pixels, which nobody looks at."""
    model.head.register_forward_hook(lambda head, inputs, outputs: (outputs, model.pixel_decoder.decode(outputs[0]))[0])


STEP = [tokenizer_per_branch, branches_in_turn, embedding_again, mask_per_head, growing_cache]
TEXT = [mask_per_head, growing_cache, logits_everywhere]
TRAINING = [embedding_again, logits_everywhere, velocity_decoded]


def with_wastes(model: Cheers, wastes: list[Callable[[Cheers], None]]) -> Cheers:
    """Another model around the same weights. The wastes of attention and cache wrap what the branches run."""
    other = copy.deepcopy(model, {id(t): t for t in itertools.chain(model.parameters(), model.buffers())})
    for waste in sorted(wastes, key=[*STEP, *TEXT, *TRAINING].index, reverse=True):
        waste(other)
    return other


# ---- measuring ---------------------------------------------------------------------------------------------------

class Stopwatch:
    """Wall time; on a CPU with one thread the process's own, which other programs hardly move."""

    def __init__(self, device: torch.device, turns: int):
        self.device, self.turns = device, turns
        alone = device.type == "cpu" and torch.get_num_threads() == 1
        self.clock = time.process_time if alone else time.perf_counter

    def once(self, run: Callable[[], Tensor]) -> float:
        self.wait()
        start = self.clock()
        run()
        self.wait()
        return self.clock() - start

    def wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def together(self, runs: list[Callable[[], Tensor]]) -> tuple[list[list[float]], list[Tensor]]:
        """Seconds of each run at each turn, and its result. The runs take turns, after one that warms up."""
        results = [run() for run in runs]
        turns = [[self.once(run) for run in runs] for _ in range(self.turns)]
        return list(zip(*turns)), results

    def seconds(self, run: Callable[[], Tensor]) -> float:
        return statistics.median(self.together([run])[0][0])


def ratio(slow: list[float], fast: list[float]) -> float:
    """Of neighbours in time, so that what else the machine does falls on both."""
    return statistics.median(a / b for a, b in zip(slow, fast))


def difference(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


def flop(run: Callable[[], Tensor]) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # it knows no CPU kernel of attention
        run()
    return counter.get_total_flops()


def limits(watch: Stopwatch, dtype: torch.dtype) -> tuple[float, float]:
    """FLOP/s of a large matrix product or convolution, whichever library is the faster one here; bytes/s of reading a
    matrix larger than any cache (by a product with a vector)."""
    n = 2048 if watch.device.type == "cpu" else 8192
    shapes = (n, n), (4 * n, 4 * n), (1, 4 * n), (1, 256, n // 16, n // 16), (256, 256, 3, 3)
    a, b, x, picture, kernel = (torch.randn(shape, device=watch.device, dtype=dtype) for shape in shapes)
    convolve = partial(F.conv2d, picture, kernel, padding=1)
    rates = 2 * n**3 / watch.seconds(lambda: a @ a), flop(convolve) / watch.seconds(convolve)
    return max(rates), b.nbytes / watch.seconds(lambda: F.linear(x, b))


class Inputs:
    """What a step, an answer and a training step of one picture start from."""

    def __init__(self, model: Cheers, device: torch.device, dtype: torch.dtype):
        c, random = model.config, torch.Generator().manual_seed(0)
        side, width = c.siglip.image_size // c.vae.factor, c.siglip.image_size
        noise = torch.randn(8, c.vae.latent_channels, side, side, generator=random)
        self.noise = noise.to(device)                                              # (8, z', h, w)
        self.ids = torch.randint(100, 1000, (16, PROMPT), generator=random).tolist()
        row = torch.tensor(self.ids[0] + [c.special.image_gen] * (side // 2) ** 2)[None]
        labels = torch.where(torch.arange(row.shape[1]) < PROMPT // 2, IGNORE, row).masked_fill(model.is_image(row), IGNORE)
        pixels, t = torch.rand(1, 3, width, width, generator=random), torch.tensor([0.4])
        self.batch = Batch(row, labels, *(x.to(dtype) for x in (pixels, noise[:1], t))).to(device)


def painting(model: Cheers, inputs: Inputs, steps: int = 1, pictures: int = 1) -> Callable[[], Tensor]:
    """Guided steps -> latents. Prompts are remembered beforehand. Guidance of 9.5 would magnify what bfloat16 rounds."""
    prefix = extend(model, None, inputs.ids[:pictures] + inputs.ids[8 : 8 + pictures], [])
    noise = inputs.noise[:pictures]
    return lambda: list(denoise(model, prefix, noise, 2.0, *schedule(steps, 0.5)))[-1].result


def answering(model: Cheers, inputs: Inputs, rows: int) -> Callable[[], Tensor]:
    prompts = [row * 2 for row in inputs.ids[:rows]]
    return lambda: torch.tensor(generate_texts(model, prompts, max_new_tokens=ANSWER))


def training(model: Cheers, inputs: Inputs) -> Callable[[], Tensor]:
    """A forward and a backward pass -> the losses."""
    def run() -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            model.zero_grad()
            (loss := model.loss(inputs.batch)).total.backward()
        return torch.stack([loss.text, loss.image]).detach()
    return run


def parts(model: Cheers, inputs: Inputs) -> dict[str, dict[str, Callable[[], Tensor]]]:
    """The parts of a guided step, and of a training step with its backward pass, each on its own."""
    z, batch = inputs.noise[:1].to(model.dtype), inputs.batch
    grid = z.shape[2] // 2, z.shape[3] // 2
    pixels, (tokens, details) = model.pixel_decoder.decode(z), model.tokenize_image(z)
    two, two_details = (x.repeat(2, 1, 1) for x in (tokens, details))
    positions = torch.arange(batch.ids.shape[1], device=z.device).expand(2, -1)
    row, mask = model.embed(batch.ids, tokens), attention_mask(model.is_image(batch.ids))

    def learning(part: Callable[..., Tensor], *given: Tensor) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.inference_mode(False), torch.enable_grad():
                model.zero_grad()
                (result := part(*(x.clone().requires_grad_() for x in given)).float().sum()).backward()
            return result.detach()
        return run

    return {
        "guided step": {
            "pixel decoder": lambda: model.pixel_decoder.decode(z),
            "SigLIP2": lambda: model.siglip(pixels)[0],
            "language model, 2 rows": lambda: model.qwen(two, positions[:, : two.shape[1]]),
            "head, 2 rows": lambda: model.head(two, z.new_full((2,), 0.4), two_details, grid)[0]},
        "training step": {
            "VAE's encoder, forward": lambda: model.encode_image(batch.pixels),
            "pixel decoder": learning(lambda: model.pixel_decoder.decode(z.clone())),
            "SigLIP2": learning(lambda x: model.siglip(x)[0], pixels),
            "language model": learning(lambda x: model.qwen(x, positions[:1].clone(), mask.clone()), row),
            "head": learning(lambda *x: model.head(x[0], z.new_full((1,), 0.4), x[1], grid)[0], tokens, details)}}


# ---- the table ---------------------------------------------------------------------------------------------------

@torch.inference_mode()
def bench(size: str, device: torch.device, turns: int, compiled: bool, say: Callable[[str], None]) -> dict:
    dtype = torch.bfloat16 if size == "official" else torch.float32
    torch.manual_seed(0)
    config = SIZES[size]()
    config.special = SpecialTokens(end_of_turn=-1)  # answers have one length
    config.special.image, config.special.image_gen = -200, -300
    torch.set_default_dtype(dtype)
    with torch.inference_mode(False), device:
        model = Cheers(config)
    torch.set_default_dtype(torch.float32)
    model.vae.requires_grad_(False)
    inputs, watch, rows = Inputs(model, device, dtype), Stopwatch(device, turns), []
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2

    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    say(f"{chip}, {torch.get_num_threads()} threads, {dtype}, torch {torch.__version__}, {turns} turns")
    arithmetic, bandwidth = limits(watch, dtype)
    say(f"limits, measured: {arithmetic / 1e9:,.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s\n")

    def row(name: str, slow: list[float], fast: list[float], apart: float | None, scale: float = 1.0) -> None:
        rows.append({"name": name, "ratio": ratio(slow, fast), "max_difference": apart,
                     "seconds": statistics.median(fast), "other_seconds": statistics.median(slow)})
        say(f"{name:44} {rows[-1]['ratio']:6.2f} {1e3 * rows[-1]['other_seconds']:10.1f} {1e3 * rows[-1]['seconds']:10.1f}"
            + ("" if apart is None else f" {apart:12.1e}"))
        if apart is not None and not apart <= tolerance * scale:
            raise SystemExit(f"bench.py: with the waste {name!r} the result is another one, by {apart:.1e}")

    def compare(name: str, wastes: list, prepare: Callable) -> None:
        """One row per waste, then one with all of them, named `name`."""
        added = [*([waste] for waste in wastes), wastes]
        times, results = watch.together([prepare(model), *(prepare(with_wastes(model, one)) for one in added)])
        for one, slow, result in zip(added, times[1:], results[1:]):
            label = name if one is wastes else f"{name}: {one[0].__name__.replace('_', ' ')}"
            row(label, slow, times[0], difference(result, results[0]), results[0].float().abs().max().item())

    say(f"{'ratio of times':44} {'':6} {'ms with':>10} {'ms without':>10} {'difference':>12}")
    compare("guided step", STEP, lambda m: painting(m, inputs))
    compare("two answers", TEXT, lambda m: answering(m, inputs, 2))
    compare("training step", TRAINING, lambda m: training(m, inputs))
    model.zero_grad()
    (one, two, batch), results = watch.together([painting(model, inputs, *shape) for shape in ((1, 1), (2, 1), (1, 8))])
    row("2 steps over 1", two, one, None)
    row("8 pictures over 1", batch, one, difference(results[2][:1], results[0]), results[0].abs().max().item())
    if compiled:
        fast = with_wastes(model, [])
        for part in (fast.pixel_decoder.decoder, fast.siglip, fast.projector, fast.qwen, fast.head):
            part.compile()
        (slow, quick), results = watch.together([painting(with_wastes(model, STEP), inputs), painting(fast, inputs)])
        row("guided step, compiled over eager wastes", slow, quick, difference(*results), results[0].abs().max().item())

    with torch.inference_mode(False), torch.device("meta"):
        whole = Cheers(CheersConfig())
    whole.vae.requires_grad_(False)
    for (task, here), there in zip(parts(model, inputs).items(), parts(whole, Inputs(whole, whole.device, dtype)).values()):
        say(f"\n{task:28} {'GFLOP':>10} {'share':>10} {'officially':>10} {'ms':>10} {'of limit':>10}")
        flops, official = ([flop(run) for run in runs.values()] for runs in (here, there))
        for (name, run), count, share in zip(here.items(), flops, official):
            seconds = watch.seconds(run)
            rows.append({"name": f"{task}, {name}", "flop": count, "seconds": seconds, "share": count / seconds / arithmetic})
            say(f"{name:28} {count / 1e9:10.1f} {count / sum(flops):10.0%} "
                f"{share / sum(official):10.0%} {1e3 * seconds:10.1f} {rows[-1]['share']:10.0%}")
    model.zero_grad()
    say("")
    for count in (1, 4):
        weights = sum(p.nbytes for p in model.qwen.parameters())
        prefix = extend(model, None, inputs.ids[:count], [])
        seconds = watch.seconds(lambda: model.qwen.logits(extend(model, prefix, [[7]] * count, []).hidden))
        rows.append({"name": f"a token of {count} rows", "bytes": weights, "seconds": seconds,
                     "tokens_per_second": count / seconds, "share": weights / seconds / bandwidth})
        say(f"{f'a token of {count} rows: {count / seconds:,.0f} tokens/s':44} {'':10} {1e3 * seconds:10.1f} "
            f"{rows[-1]['share']:10.0%} of bandwidth")
    gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    say(f"\npeak memory, training and all wastes included: {peak / 1e9:.2f} GB, "
        f"weights {sum(p.nbytes for p in model.parameters()) / 1e9:.2f} GB")
    return {"device": str(device), "dtype": str(dtype), "size": size, "flop_per_second": arithmetic,
            "bytes_per_second": bandwidth, "peak_bytes": peak, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=best_device())
    parser.add_argument("--size", choices=SIZES, help="official on a GPU, reduced on a CPU by default")
    parser.add_argument("--turns", type=int, default=5, help="measurements of each run")
    parser.add_argument("--compile", action="store_true", help="also our path compiled, against the eager one with all wastes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    keep_freed_memory()
    size = args.size or ("reduced" if args.device.type == "cpu" else "official")
    result = bench(size, args.device, args.turns, args.compile, (lambda line: None) if args.json else print)
    if args.json:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
