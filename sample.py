"""Sampling: pictures by Euler steps along the flow, text token by token, and both in one answer.

Cheers (arXiv 2603.12793), section 2.2, "Inference". The picture's loop is `denoise`; everything else prepares its
inputs. The vision tokenizer runs once per step; the conditional and the unconditional branch share one call of the
language model; keys and values of the prompt are computed once.

Shape letters: B pictures, R rows of the language model (2B with guidance), K prompt tokens, m = n/4 visual tokens.
"""

import argparse
import json
import math
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, PngImagePlugin
from tokenizers.decoders import DecodeStream
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from cheers import Cheers, attention_mask, best_device
from data import LOOK, drop_text, expand, fit_inside, open_picture, to_picture, to_pixels, to_rgb
from qwen import KeyValues, chat

PUBLISHED = {"steps": 80, "guidance": 9.5, "shift": 0.5}  # the release's README
SOURCE_SHARE = 0.1  # editing starts at 0.1·z_source + 0.9·noise

Picture = Image.Image
Prompt = str | list[dict[str, str]] | list[int]


# ---- the flow --------------------------------------------------------------------------------------------------


def schedule(steps: int, shift: float, grid: str = "exact", start: float = 0.0) -> tuple[Tensor, Tensor]:
    """Shifted times and step sizes of an Euler integration, (steps,) each, float32.

    "exact": N+1 points from `start` to 1, so N intervals. "released": N points, so N-1 intervals, and one more evaluation
    at t = 1 with step 1/N, as published scores were made."""
    points = torch.linspace(start, 1, steps + (grid == "exact"))
    t = shift * points / (1 + (shift - 1) * points)            # t̃ = αt / (1 + (α-1)t)
    if grid == "exact":
        return t[:-1], t.diff()
    return t, torch.cat([t.diff(), torch.tensor([1 / steps])])


@dataclass
class Prefix:
    """What the language model remembers of R prompts, padded on the right to K tokens."""

    past: KeyValues
    real: Tensor        # (R, K) bool, False at padding
    hidden: Tensor      # (R, C), of each prompt's last token

    @property
    def lengths(self) -> Tensor:
        return self.real.sum(1)


def extend(
    model: Cheers, prefix: Prefix | None, rows: list[list[int]], visuals: list[Tensor], causal: int = 0
) -> Prefix:
    """Runs R rows of ids (a placeholder per visual token) and their visual tokens (m', C), in order, through the language
    model, after what it remembers.

    causal: so many tokens at the start are visual tokens without full attention (the release's dummy picture)."""
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    longest = int(lengths.max())
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)
    new = torch.arange(longest, device=model.device).expand_as(ids)                # (R, L)
    mask, real, positions = attention_mask(model.is_image(ids) & (new >= causal)), new < lengths[:, None], new
    if prefix:
        mask = torch.cat([prefix.real[:, None, None].expand(-1, 1, longest, -1), mask], dim=-1)
        real, positions = torch.cat([prefix.real, real], dim=1), prefix.lengths[:, None] + new
    if real.shape[1] > (limit := model.config.qwen.max_position_embeddings):
        raise ValueError(f"the prompt is too long: {real.shape[1]} tokens, the model takes {limit}; shorten it")
    embeddings = model.embed(ids, torch.cat(visuals) if visuals else None)         # (R, L, C)
    hidden, past = model.qwen(embeddings, positions, mask, prefix and prefix.past)
    return Prefix(past, real, hidden[torch.arange(len(rows)), lengths - 1])


@dataclass
class Step:
    """One evaluation of the velocity. Latents and velocities are (B, z', h, w)."""

    t: float
    latents: Tensor                  # z_t
    conditional: Tensor
    unconditional: Tensor | None     # None without guidance
    velocity: Tensor                 # what the Euler step follows
    gate: Tensor                     # (B, h, w), G of the conditional branch
    result: Tensor                   # z_{t+Δt}


def denoise(
    model: Cheers, prefix: Prefix, latents: Tensor, guidance: float, times: Tensor, deltas: Tensor
) -> Iterator[Step]:
    """Follows dz/dt = V_t(z) from `latents` (B, z', h, w). With guidance other than 1 the prefix holds 2B rows: conditional
    ones, then unconditional ones."""
    branches = len(prefix.real) // len(latents)
    grid = latents.shape[2] // 2, latents.shape[3] // 2
    m = grid[0] * grid[1]
    positions = prefix.lengths[:, None] + torch.arange(m, device=model.device)     # (R, m)
    mask = F.pad(prefix.real, (0, m), value=True)[:, None, None].expand(-1, 1, m, -1)  # (R, 1, m, K+m)
    z = latents.float()
    for t, delta in zip(times.tolist(), deltas.tolist()):
        tokens, details = model.tokenize_image(z.to(model.dtype))                  # (B, m, C), (B, n, V)
        tokens, details = (x.repeat(branches, 1, 1) for x in (tokens, details))    # (R, m, C), (R, n, V)
        hidden, _ = model.qwen(tokens, positions, mask, prefix.past)               # (R, m, C)
        t_rows = torch.full((len(hidden),), t, device=model.device)
        velocity, gate = model.head(hidden, t_rows, details, grid)                 # (R, z', h, w), (R, n, 1)
        conditional, *rest = velocity.float().split(len(z))
        unconditional = rest[0] if rest else None
        # v = v_uncond + s·(v_cond - v_uncond)
        guided = unconditional + guidance * (conditional - unconditional) if rest else conditional
        result = z + delta * guided                                                # z_{t+Δt} = z_t + Δt·V_t
        yield Step(t, z, conditional, unconditional, guided, gate[: len(z), :, 0].unflatten(1, z.shape[2:]), result)
        z = result


# ---- prompts and pictures --------------------------------------------------------------------------------------


def complete(model: Cheers, **chosen: float | None) -> dict:
    """steps, guidance and shift: as chosen, else the checkpoint's, else the published ones. Raises ValueError if impossible."""
    settings = PUBLISHED | model.generation | {name: value for name, value in chosen.items() if value is not None}
    if settings["steps"] < 1:
        raise ValueError(f"steps must be at least 1, not {settings['steps']}")
    if not math.isfinite(settings["guidance"]):
        raise ValueError(f"guidance must be a finite number, not {settings['guidance']}")
    if not 0 < settings["shift"] < math.inf:
        raise ValueError(f"shift must be a positive number, not {settings['shift']}")
    return settings


def picture_size(model: Cheers, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """(width, height), the trained square when left out. Raises ValueError unless both are multiples of 2f."""
    width, height = (size, size) if isinstance(size, int) else size or (model.config.siglip.image_size,) * 2
    multiple = model.config.multiple
    if width < multiple or height < multiple or width % multiple or height % multiple:
        raise ValueError(f"a size of {width}x{height} does not fit: both sides must be positive multiples of {multiple}")
    return width, height


def seeded_noise(seed: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """z_0 of picture `index`: fixed by (seed, index) alone, whatever the batch and the device."""
    return torch.from_numpy(np.random.default_rng([seed, index]).standard_normal(shape, dtype=np.float32))


def stack_pictures(pictures: list[Picture] | Tensor | None, side: int) -> list[Tensor]:
    """Pictures to look at -> pixels (3, S, S) each; a tensor (N, 3, H, W) in [0, 1] is taken as it is."""
    if pictures is None:
        return []
    return list(pictures) if isinstance(pictures, Tensor) else [to_pixels(fit_inside(to_rgb(p), side)) for p in pictures]


def look(model: Cheers, pixels: list[Tensor]) -> list[Tensor]:
    """Visual tokens (m, C) of clean pictures, t = 1."""
    return [model.tokenize_image(model.encode_image(p[None]))[0][0] for p in pixels]


def prompt_ids(model: Cheers, prompt: Prompt, visuals: list[Tensor], painting: bool) -> list[int]:
    """The ids of a prompt, a placeholder for each visual token. Text is put into the chat template, pictures first."""
    if not isinstance(prompt, str) and all(isinstance(token, int) for token in prompt):
        ids = list(prompt)
    else:
        if model.tokenizer is None:
            raise ValueError("the checkpoint has no tokenizer; pass token ids, or add tokenizer.json to its folder")
        messages = prompt
        if isinstance(prompt, str):
            messages = [{"role": "user", "content": f"{LOOK}\n" * len(visuals) + prompt}]
        ids = model.tokenizer.encode(chat(messages))
        ids += [model.config.special.image_start] * painting
    placeholders = int(model.is_image(torch.tensor(ids)).sum())
    if placeholders != len(visuals):
        raise ValueError(f"the prompt has {placeholders} picture placeholders for {len(visuals)} pictures")
    return expand(ids, [len(tokens) for tokens in visuals], model.config)[0]


# ---- pictures --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def generate_images(
    model: Cheers,
    prompts: list[Prompt],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    shift: float | None = None,
    size: int | tuple[int, int] | None = None,
    seed: int | None = None,
    noise: Tensor | None = None,
    negative: Prompt | None = None,
    sources: list[Picture | list[Picture]] | Tensor | None = None,
    grid: str = "exact",
    dummy_pixels: Tensor | None = None,
    first: int = 0,
    watch: Callable[[Step], None] | None = None,
) -> Tensor:
    """Paints one picture per prompt -> (B, 3, H, W) in [0, 1], float32.

    prompts: strings, lists of messages, or complete lists of ids ending in `<im_start>`.
    steps, guidance, shift: the checkpoint's defaults when left out; guidance 1 is the conditional model alone.
    size: S or (W, H), multiples of 2f. Rotary positions reach any size and position embeddings are interpolated, but the
        weights have seen only the square they were trained on.
    seed: picture k is fixed by (seed, first + k). noise: (B, z', h, w) instead of seeded noise.
    negative: replaces the unconditional prompt (all words `<no_mean>`).
    sources: pictures to edit, one per prompt (or a list per prompt, the first of which is edited). They stand in the
        conditional and the unconditional prompt, and the flow starts a tenth of the way towards the first.
    grid: "exact" or "released" (`schedule`). dummy_pixels: (B, 3, S, S), the released code's random picture before prompts.
    watch: called with every `Step`.
    Raises ValueError for settings that cannot be."""
    settings = complete(model, steps=steps, guidance=guidance, shift=shift)
    steps, guidance, shift = settings["steps"], settings["guidance"], settings["shift"]
    if grid not in ("exact", "released"):
        raise ValueError(f'grid is "exact" or "released", not {grid!r}')
    width, height = picture_size(model, size)
    factor, start = model.config.vae.factor, 0.0

    visuals: list[list[Tensor]] = [[] for _ in prompts]
    latents = None
    if sources is not None:
        if len(sources) != len(prompts):
            raise ValueError(f"there are {len(sources)} source pictures for {len(prompts)} prompts")
        if not isinstance(sources, Tensor) and width != height:
            raise ValueError("source pictures are padded to a square; edit at a square size")
        steps, start = int(0.9 * steps), SOURCE_SHARE
        if not steps:
            raise ValueError("editing needs at least 2 steps")
        pixels = [
            stack_pictures(s[None] if isinstance(s, Tensor) else s if isinstance(s, list) else [s], width) for s in sources
        ]
        visuals = [look(model, p) for p in pixels]
        latents = torch.cat([model.encode_image(p[0][None]) for p in pixels]).float()
    rows = [prompt_ids(model, p, v, painting=True) for p, v in zip(prompts, visuals)]
    if guidance != 1:
        rows += [
            prompt_ids(model, negative, v, painting=True) if negative is not None else drop_text(row, model.config)
            for row, v in zip(rows, visuals)
        ]
        visuals = visuals * 2
    causal = 0
    if dummy_pixels is not None:
        dummies = look(model, list(dummy_pixels)) * (len(rows) // len(prompts))
        causal = len(dummies[0])
        rows = [[model.config.special.image] * causal + row for row in rows]
        visuals = [[dummy, *v] for dummy, v in zip(dummies, visuals)]

    shape = (model.config.vae.latent_channels, height // factor, width // factor)
    if latents is not None:
        shape = tuple(latents.shape[1:])
    if noise is None:
        seed = secrets.randbits(32) if seed is None else seed
        noise = torch.stack([seeded_noise(seed, first + k, shape) for k in range(len(prompts))])
    if tuple(noise.shape) != (len(prompts), *shape):
        raise ValueError(f"noise has shape {list(noise.shape)} instead of {[len(prompts), *shape]}")
    z = noise.to(model.device, torch.float32)
    if latents is not None:
        z = SOURCE_SHARE * latents + (1 - SOURCE_SHARE) * z
    prefix = extend(model, None, rows, [tokens for v in visuals for tokens in v], causal)
    for step in denoise(model, prefix, z, guidance, *schedule(steps, shift, grid, start)):
        if watch:
            watch(step)
        z = step.result
    return model.decode_image(z).float().clamp(0, 1)


# ---- text, and answers with pictures ---------------------------------------------------------------------------


def choose(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """The next token from logits (vocabulary,): the likeliest at temperature 0, else drawn from the smallest set of tokens
    whose probabilities sum to top_p."""
    if temperature == 0:
        return int(logits.argmax())
    probabilities, order = (logits.float().cpu() / temperature).softmax(-1).sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities
    probabilities[before >= top_p] = 0
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


def stream(
    model: Cheers,
    ids: list[int],
    visuals: list[Tensor],
    paint: Callable[[list[int], list[Tensor]], Tensor] | None,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> Iterator[int | Tensor]:
    """Token ids of an answer, as they come, the end of the turn not included. When a token opens a picture and `paint` is
    given, paint(ids so far, visual tokens so far) -> final latents (1, z', h, w) are yielded, the answer's context gets
    their visual tokens at t = 1, and it goes on."""
    if temperature < 0 or not 0 < top_p <= 1 or max_new_tokens < 1:
        raise ValueError("temperature must be at least 0, top_p in (0, 1], and the number of new tokens at least 1")
    special = model.config.special
    generator = torch.Generator().manual_seed(secrets.randbits(32) if seed is None else seed)
    prefix = extend(model, None, [ids], visuals)
    limit = model.config.qwen.max_position_embeddings
    for _ in range(min(max_new_tokens, limit - len(ids))):
        token = choose(model.qwen.logits(prefix.hidden)[0], temperature, top_p, generator)
        if token == special.end_of_turn:
            return
        new, new_visuals = [token], []
        if token == special.image_start and paint:
            latents = paint(ids + new, visuals)
            yield latents
            new_visuals = [model.tokenize_image(latents.to(model.dtype))[0][0]]
            new += [special.image] * len(new_visuals[0]) + [special.image_end]
        else:
            yield token
        ids, visuals = ids + new, visuals + new_visuals
        prefix = extend(model, prefix, [new], new_visuals)


@torch.inference_mode()
def generate_text(
    model: Cheers,
    prompt: Prompt,
    images: list[Picture] | Tensor | None = None,
    *,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> str | list[int]:
    """Answers a prompt about pictures: text in, text out; ids in, ids out (the end of the turn not included)."""
    visuals = look(model, stack_pictures(images, model.config.siglip.image_size))
    row = prompt_ids(model, prompt, visuals, painting=False)
    ids = list(stream(model, row, visuals, None, max_new_tokens, temperature, top_p, seed))
    raw = not isinstance(prompt, str) and all(isinstance(token, int) for token in prompt)
    return ids if raw else model.tokenizer.decode(ids).strip()


@torch.inference_mode()
def converse(
    model: Cheers,
    messages: list[dict[str, str]],
    images: list[Picture] | Tensor | None = None,
    *,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    shift: float | None = None,
    size: int | tuple[int, int] | None = None,
    first: int = 0,
    watch: Callable[[Step], None] | None = None,
) -> Iterator[str | Picture]:
    """The assistant's next turn: yields pieces of text and pictures in the order they arise. An answer that opens
    `<im_start>` paints there, on all that was said before, and goes on; its k-th picture is fixed by (seed, first + k)."""
    settings = complete(model, steps=steps, guidance=guidance, shift=shift)
    seed = secrets.randbits(32) if seed is None else seed
    width, height = picture_size(model, size)
    visuals = look(model, stack_pictures(images, model.config.siglip.image_size))
    painted = first

    def paint(ids: list[int], visuals: list[Tensor]) -> Tensor:
        nonlocal painted
        factor, guidance = model.config.vae.factor, settings["guidance"]
        z = seeded_noise(seed, painted, (model.config.vae.latent_channels, height // factor, width // factor))[None]
        painted += 1
        rows = [ids] if guidance == 1 else [ids, drop_text(ids, model.config)]
        prefix = extend(model, None, rows, visuals * len(rows))
        times = schedule(settings["steps"], settings["shift"])
        for step in denoise(model, prefix, z.to(model.device), guidance, *times):
            if watch:
                watch(step)
        return step.result

    row = prompt_ids(model, messages, visuals, painting=False)
    decoder = DecodeStream(skip_special_tokens=True)  # holds back bytes that are not a character yet
    for piece in stream(model, row, visuals, paint, max_new_tokens, temperature, top_p, seed):
        if isinstance(piece, Tensor):
            yield to_picture(model.decode_image(piece)[0])
        elif text := decoder.step(model.tokenizer.backend, piece):
            yield text


# ---- the gate's heat maps (Figure 5) ---------------------------------------------------------------------------


def heat(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] (…,) -> colours (…, 3) uint8: black, red, yellow, white."""
    return (np.stack([3 * values, 3 * values - 1, 3 * values - 2], axis=-1).clip(0, 1) * 255).astype(np.uint8)


def draw_heatmaps(times: list[float], gates: list[Tensor], tile: int = 96) -> Picture:
    """Figure 5a: |G| at every position, one tile per step in reading order, t written below."""
    maps = torch.stack(gates).abs().float().cpu().numpy()                          # (steps, h, w)
    maps = (maps - maps.min()) / max(maps.max() - maps.min(), 1e-12)
    columns = math.ceil(math.sqrt(len(maps)))
    sheet = Image.new("RGB", (columns * (tile + 4), math.ceil(len(maps) / columns) * (tile + 16)), "white")
    for i, (t, values) in enumerate(zip(times, maps)):
        left, top = i % columns * (tile + 4), i // columns * (tile + 16)
        sheet.paste(Image.fromarray(heat(values)).resize((tile, tile), Image.Resampling.NEAREST), (left, top))
        ImageDraw.Draw(sheet).text((left, top + tile + 2), f"t = {t:.2f}", fill="black")
    return sheet


def intensities(gates: list[Tensor]) -> list[float]:
    """Figure 5b: mean |G| of each step, normalised over the run to [0, 1]."""
    means = torch.stack([gate.abs().float().mean() for gate in gates])
    return ((means - means.min()) / (means.max() - means.min()).clamp(min=1e-12)).tolist()


def draw_curve(values: list[float], width: int = 480, height: int = 300, margin: int = 36) -> Picture:
    """A line through values in [0, 1], one per step."""
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((margin, margin, width - margin, height - margin), outline="gray")
    across, up = (width - 2 * margin) / max(len(values) - 1, 1), height - 2 * margin
    pen.line([(margin + i * across, height - margin - v * up) for i, v in enumerate(values)], fill=(220, 40, 40), width=2)
    pen.text((margin, 14), "gate intensity, normalised to [0, 1]", fill="black")
    pen.text((margin, height - 26), f"step 1 to {len(values)}", fill="black")
    return picture


# ---- command line ----------------------------------------------------------------------------------------------


def save_png(picture: Picture, path: Path, prompt: str, seed: int, settings: dict) -> None:
    """Writes a PNG that carries its prompt, seed and settings; under another name first."""
    info = PngImagePlugin.PngInfo()
    for key, value in (("prompt", prompt), ("seed", str(seed)), ("settings", json.dumps(settings))):
        info.add_itxt(key, value)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(partial, "PNG", pnginfo=info)
        os.replace(partial, path)
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror or error}); choose another --out") from None


def parse_size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and (height.isdigit() or height == "" and "x" not in text.lower())):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 512 or 512x768")
    return int(width), int(height or width)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Paint, answer, edit and talk with Cheers.", allow_abbrev=False)
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="what to paint, ask, change or say")
    add("--model", default=str(Path(__file__).parent / "weights" / "tiny"), help="folder or hub name, e.g. ai9stars/Cheers")
    add("--image", action="append", default=[], metavar="FILE", help="a picture to look at; may be repeated")
    add("--edit", action="store_true", help="paint the --image anew, changed as the prompt says")
    add("--chat", action="store_true", help="talk; each prompt is a turn, without prompts you type them")
    add("--steps", type=int, help="Euler steps")
    add("--guidance", type=float, help="classifier-free guidance, 1 for none")
    add("--shift", type=float, help="α of the time shift")
    add("--seed", type=int, help="fixes every random choice")
    add("--num", type=int, default=1, help="pictures per prompt")
    add("--size", type=parse_size, metavar="S|WxH")
    add("--negative", metavar="TEXT", help="what guidance leads away from, instead of no words at all")
    add("--released", action="store_true", help="time grid and dummy picture of the released code")
    add("--max-tokens", type=int, default=512)
    add("--temperature", type=float, default=0.0, help="0 takes the likeliest token")
    add("--top-p", type=float, default=1.0)
    add("--out", type=Path, default=Path("outputs"), metavar="FILE|FOLDER")
    add("--heatmaps", action="store_true", help="also write the gate's map at each step, and its intensity curve")
    add("--device", help="cpu, cuda, mps; the best there is by default")
    add("--dtype", choices=("float32", "bfloat16"), help="float32 on CPUs, else as stored")
    arguments = parser.parse_args()
    answers = arguments.chat or (arguments.image and not arguments.edit)
    for wrong, sentence in (
        (arguments.edit and not arguments.image, "--edit needs the picture to change: add --image FILE"),
        (arguments.edit and arguments.chat, "--edit and --chat exclude each other"),
        (not arguments.prompts and not arguments.chat, "a PROMPT is missing, for example: a red circle"),
        (answers and arguments.released, "--released is for painting and editing"),
        (answers and arguments.heatmaps, "--heatmaps is for painting and editing"),
        (answers and (arguments.num != 1 or arguments.negative), "--num and --negative are for painting and editing"),
        (arguments.num < 1, "--num must be at least 1"),
        (arguments.seed is not None and arguments.seed < 0, "--seed must not be negative"),
        (arguments.out.suffix.lower() == ".png" and len(arguments.prompts) * arguments.num > 1,
         "several pictures do not fit into one file; give a folder to --out"),
    ):
        if wrong:
            parser.error(sentence)
    return arguments


class Bar:
    """A progress bar over Euler steps, with rate and remaining time."""

    def __init__(self, total: int):
        self.total, self.bar = total, None

    def __call__(self, step: Step) -> None:
        if self.bar is None or self.bar.n == self.total:
            self.bar = tqdm(total=self.total, desc="painting", unit="step", dynamic_ncols=True)
        self.bar.update()
        if self.bar.n == self.total:
            self.bar.close()


def paint_all(model: Cheers, arguments: argparse.Namespace, settings: dict, seed: int) -> None:
    """Every prompt `--num` times, in batches; prints the path of each picture."""
    size = picture_size(model, arguments.size)
    prompts = [prompt for prompt in arguments.prompts for _ in range(arguments.num)]
    sources = [open_picture(path) for path in arguments.image] if arguments.edit else None
    shared = settings | {"size": size, "grid": "released" if arguments.released else "exact", "negative": arguments.negative}
    chunk = max(1, 4 * 512 * 512 // (size[0] * size[1]))  # four official pictures at once
    steps = int(0.9 * settings["steps"]) if arguments.edit else settings["steps"]
    for start in range(0, len(prompts), chunk):
        batch = prompts[start : start + chunk]
        dummy, recorded, bar = None, [], Bar(steps)
        if arguments.released and not arguments.edit:
            dummy = torch.stack([released_dummy(model, seed, start + k) for k in range(len(batch))])

        def watch(step: Step) -> None:
            bar(step)
            recorded.append((step.t, step.gate))

        pixels = generate_images(
            model, batch, seed=seed, first=start, dummy_pixels=dummy, watch=watch,
            sources=None if sources is None else [sources] * len(batch), **shared,
        )
        for k, (prompt, picture) in enumerate(zip(batch, pixels)):
            path = output_path(arguments.out, prompt, seed, start + k)
            if arguments.heatmaps:
                times, gates = [t for t, _ in recorded], [gate[k] for _, gate in recorded]
                about = (prompt, seed, shared)
                save_png(draw_heatmaps(times, gates), path.with_name(f"{path.stem}-heatmaps.png"), *about)
                save_png(draw_curve(intensities(gates)), path.with_name(f"{path.stem}-intensity.png"), *about)
            save_png(to_picture(picture), path, prompt, seed, shared | {"index": start + k})
            print(path, flush=True)


def released_dummy(model: Cheers, seed: int, index: int) -> Tensor:
    """The picture of noise that the released code puts before prompts without pictures, here with a seed: (3, S, S)."""
    noise = np.random.default_rng([seed, index, 1]).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    return to_pixels(fit_inside(Image.fromarray(noise), model.config.siglip.image_size))


def output_path(out: Path, prompt: str, seed: int, index: int) -> Path:
    if out.suffix.lower() == ".png":
        return out
    words = "-".join("".join(c if c.isalnum() else " " for c in prompt.lower()).split())[:60] or "picture"
    return out / f"{words}-{seed}-{index}.png"


def talk(model: Cheers, arguments: argparse.Namespace, settings: dict, seed: int) -> None:
    """Answers each prompt in turn, or what is typed; text streams, pictures are written where they arise."""
    images = [open_picture(path) for path in arguments.image]
    limits = dict(max_new_tokens=arguments.max_tokens, temperature=arguments.temperature, top_p=arguments.top_p)
    messages, painted = [], 0
    turns = arguments.prompts if arguments.chat else [" ".join(arguments.prompts)]
    for prompt in turns or typed():
        looks = f"{LOOK}\n" * (len(arguments.image) if not messages else 0)
        messages.append({"role": "user", "content": looks + prompt})
        answer, line_open = "", False
        bar = Bar(settings["steps"])
        for piece in converse(
            model, messages, images, seed=seed, size=arguments.size, watch=bar, first=painted, **limits, **settings
        ):
            if isinstance(piece, str):
                print(piece, end="", flush=True)
                answer, line_open = answer + piece, not piece.endswith("\n")
            else:
                path = output_path(arguments.out, prompt, seed, painted)
                save_png(piece, path, prompt, seed, settings | limits | {"index": painted})
                print("\n" * line_open + str(path), flush=True)
                answer, line_open, painted = answer + LOOK, False, painted + 1
                images.append(piece)
        print("\n" * line_open, end="", flush=True)
        messages.append({"role": "assistant", "content": answer})


def typed() -> Iterator[str]:
    """Lines from the keyboard or a pipe, until end of file or an empty line."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not line.strip():
            return
        yield line


def main() -> None:
    arguments = parse_arguments()
    device = torch.device(arguments.device) if arguments.device else best_device()
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else torch.float32 if device.type == "cpu" else None
    model = Cheers.from_pretrained(arguments.model, device, dtype)
    settings = complete(model, steps=arguments.steps, guidance=arguments.guidance, shift=arguments.shift)
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    answers = arguments.chat or (arguments.image and not arguments.edit)
    (talk if answers else paint_all)(model, arguments, settings, seed)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"sample.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\nsample.py: interrupted; finished pictures are kept")
