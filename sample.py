"""Sampling: pictures by Euler steps along the flow, text token by token, and both in one answer.

Cheers (arXiv 2603.12793), section 2.2, "Inference". The picture's loop is `denoise`; everything else prepares its
inputs. The vision tokenizer runs once per step; the conditional and the unconditional branch share one call of the
language model; keys and values of the prompt are computed once.

Shape letters: B pictures, R rows of the language model (2B with guidance), K prompt tokens, m = n/4 visual tokens.
"""

import argparse
import ctypes
import itertools
import json
import math
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from tokenizers.decoders import DecodeStream
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from cheers import Cheers, attention_mask, best_device
from data import LOOK, draw_curves, draw_heatmaps, drop_text, dummy_picture, expand, fit_inside, intensities
from data import make_folder, open_picture, to_picture, to_pixels, to_rgb
from qwen import chat

PUBLISHED = {"steps": 80, "guidance": 9.5, "shift": 0.5}  # the release's README
SOURCE_SHARE = 0.1  # editing starts at 0.1·z_source + 0.9·noise

Picture = Image.Image
Pictures = list[Picture] | Tensor                  # or (N, 3, H, W) in [0, 1]
Prompt = str | list[dict[str, str]] | list[int]    # or messages, or ids


# ---- the flow --------------------------------------------------------------------------------------------------

def schedule(steps: int, shift: float, grid: str = "exact", start: float = 0.0) -> tuple[Tensor, Tensor]:
    """Shifted times and step sizes of an Euler integration, (steps,) each, float32.

    "exact": N+1 points from `start` to 1, so N intervals. "released": N points, so N-1 intervals, and one more
    evaluation at t = 1 with step 1/N, as published scores were made."""
    if grid not in ("exact", "released"):
        raise ValueError(f'grid is "exact" or "released", not {grid!r}')
    points = torch.linspace(start, 1, steps + (grid == "exact"))
    t = shift * points / (1 + (shift - 1) * points)            # t̃ = αt / (1 + (α-1)t)
    return (t[:-1], t.diff()) if grid == "exact" else (t, torch.cat([t.diff(), torch.tensor([1 / steps])]))


@dataclass
class Prefix:
    """What the language model remembers of R prompts, padded on the right to K tokens."""

    memory: Tensor      # (layers, 2, R, …, at least K, …), keys and values
    real: Tensor        # (R, K) bool, False at padding
    hidden: Tensor      # (R, C), of each prompt's last token


def extend(model: Cheers, prefix: Prefix | None, rows: list[list[int]], visuals: list[Tensor], causal=0) -> Prefix:
    """Runs R rows of ids (a placeholder per visual token) and their visual tokens (m', C), in order, through the
    language model, after what it remembers.

    causal: so many tokens at the start are visual tokens without full attention (the release's dummy picture)."""
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    ids = torch.tensor(list(itertools.zip_longest(*rows, fillvalue=0)), device=model.device).T  # (R, L), padded
    new = torch.arange(ids.shape[1], device=model.device).expand_as(ids)           # (R, L)
    mask, real, positions = attention_mask(model.is_image(ids) & (new >= causal)), new < lengths[:, None], new
    memory = prefix.memory if prefix else model.qwen.empty_memory(len(rows))
    if prefix:
        mask = torch.cat([prefix.real[:, None, None].expand(-1, 1, ids.shape[1], -1), mask], dim=-1)
        real, positions = torch.cat([prefix.real, real], dim=1), prefix.real.sum(1, keepdim=True) + new
    if (longest := int(real.sum(1).max())) > (limit := model.config.qwen.max_position_embeddings):
        raise ValueError(f"the prompt is too long: {longest} tokens, the model takes {limit}; shorten it")
    if (room := memory.shape[4]) < (tokens := real.shape[1]):  # twice what is needed, so that it grows rarely
        memory = F.pad(memory, (0, 0, 0, 2 * tokens - room))
    mask = None if mask.all() else mask  # one more token may look at all before it
    embeddings = model.embed(ids, torch.cat(visuals) if visuals else None)         # (R, L, C)
    hidden = model.qwen(embeddings, positions, mask, memory[..., :tokens, :])      # (R, L, C)
    return Prefix(memory, real, hidden[torch.arange(len(rows), device=model.device), lengths - 1])


@dataclass
class Step:
    """One evaluation of the velocity. Velocities and the result are (B, z', h, w)."""

    t: float
    conditional: Tensor
    unconditional: Tensor | None     # None without guidance
    velocity: Tensor                 # what the step follows
    gate: Tensor                     # (B, h, w), G of the conditional branch
    result: Tensor                   # z_{t+Δt}


def denoise(model: Cheers, prefix: Prefix, latents: Tensor, guidance: float, times: Tensor, deltas: Tensor,
            progress: bool = False, solver: str = "euler", interval: tuple[float, float] = (0, math.inf)) -> Iterator[Step]:
    """Follows dz/dt = V_t(z) from `latents` (B, z', h, w). With guidance other than 1 the prefix holds 2B rows:
    conditional ones, then unconditional ones, which are left out where t is not in the interval [low, high)."""
    grid = latents.shape[2] // 2, latents.shape[3] // 2
    m, before = grid[0] * grid[1], None
    positions = prefix.real.sum(1, keepdim=True) + torch.arange(m, device=model.device)  # (R, m)
    mask = F.pad(prefix.real, (0, m), value=True)[:, None, None].expand(-1, 1, m, -1)  # (R, 1, m, K+m)
    mask = None if mask.all() else mask  # without padding kernels are faster without
    memory = F.pad(prefix.memory[..., : prefix.real.shape[1], :], (0, 0, 0, m))    # each step writes the same m places
    z = latents.float()
    bar = tqdm(times.tolist(), "painting", unit="step", disable=not progress, dynamic_ncols=True)
    for t, delta in zip(bar, deltas.tolist()):
        R = len(prefix.real) if interval[0] <= t < interval[1] else len(z)
        tokens, details = (x.repeat(R // len(z), 1, 1) for x in model.tokenize_image(z))  # (R, m, C), (R, n, V)
        hidden = model.qwen(tokens, positions[:R], None if mask is None else mask[:R], memory[:, :, :R])  # (R, m, C)
        velocity, gate = model.head(hidden, z.new_full(hidden.shape[:1], t), details, grid)  # (R, z', h, w), (R, n, 1)
        conditional, *rest = velocity.float().split(len(z))
        unconditional = rest[0] if rest else None
        # v = v_uncond + s·(v_cond - v_uncond)
        guided = unconditional + guidance * (conditional - unconditional) if rest else conditional
        if before:  # two-step Adams-Bashforth: V_t + Δt/2 · (V_t - V_t') / Δt', what changed over the last step goes on
            guided, before = guided + delta / 2 * (guided - before[0]) / before[1], (guided, delta)
        elif solver == "adams":
            before = guided, delta
        z = z + delta * guided                                                     # z_{t+Δt} = z_t + Δt·V_t
        yield Step(t, conditional, unconditional, guided, gate[: len(z), :, 0].unflatten(1, z.shape[2:]), z)


# ---- prompts and pictures --------------------------------------------------------------------------------------

def complete(model: Cheers, **chosen: float | None) -> dict:
    """steps, guidance, shift: as chosen, else the checkpoint's, else the published ones. ValueError if impossible."""
    settings = PUBLISHED | model.generation | {name: value for name, value in chosen.items() if value is not None}
    for name, value in settings.items():
        if name not in PUBLISHED:
            raise ValueError(f"{name} is not a setting of painting; there are steps, guidance and shift")
        if not isinstance(value, (int, float)) or not math.isfinite(value) or name == "shift" and value <= 0:
            raise ValueError(f"{name} must be a {'positive' if name == 'shift' else 'finite'} number, not {value}")
    if settings["steps"] != int(settings["steps"]) or not 1 <= settings["steps"] <= 100_000:
        raise ValueError(f"steps must be at least 1 and at most 100000, not {settings['steps']}")
    return settings | {"steps": int(settings["steps"])}


def picture_size(model: Cheers, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """(width, height), the trained square when left out. ValueError unless both are multiples of 2f and not too large."""
    width, height = (size, size) if isinstance(size, int) else size or (model.config.siglip.image_size,) * 2
    unit, room = model.config.multiple, model.config.qwen.max_position_embeddings
    if any(side < unit or side % unit for side in (width, height)) or width * height > room * unit**2:
        raise ValueError(f"a size of {width}x{height} does not fit: both sides must be positive multiples of {unit}, "
                         f"and the model takes {room} visual tokens of {unit}x{unit}")
    return width, height


def seeded_noise(seed: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """z_0 of picture `index`: fixed by (seed, index) alone, whatever the batch and the device."""
    return torch.from_numpy(np.random.default_rng([seed, index]).standard_normal(shape, dtype=np.float32))


def look(model: Cheers, pictures: Pictures, side: int) -> tuple[list[Tensor], list[Tensor]]:
    """Latents (1, z', h, w) and visual tokens (m, C) of each clean picture, t = 1. A tensor (3, H, W) in [0, 1] is
    taken as it is, anything else fitted into a square of `side` pixels."""
    pixels = [p if isinstance(p, Tensor) else to_pixels(fit_inside(to_rgb(p), side)) for p in pictures]
    latents = [model.encode_image(p[None]) for p in pixels]
    return latents, [model.tokenize_image(z)[0][0] for z in latents]


def is_ids(prompt: Prompt) -> bool:
    return not isinstance(prompt, str) and all(isinstance(token, int) for token in prompt)


def prompt_ids(model: Cheers, prompt: Prompt, visuals: list[Tensor], painting: bool) -> list[int]:
    """The ids of a prompt, a placeholder for each visual token. Text is put into the chat template, pictures first."""
    if is_ids(prompt):
        ids = list(prompt)
    elif model.tokenizer is None:
        raise ValueError("the checkpoint has no tokenizer; pass token ids, or add tokenizer.json to its folder")
    else:
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": f"{LOOK}\n" * len(visuals) + prompt}]
        ids = model.tokenizer.encode(chat(prompt)) + [model.config.special.image_start] * painting
    placeholders = int(model.is_image(torch.tensor(ids)).sum())
    if not ids or placeholders != len(visuals):
        raise ValueError(f"the prompt of {len(ids)} ids has {placeholders} picture placeholders for {len(visuals)} pictures")
    return expand(ids, [len(tokens) for tokens in visuals], model.config)[0]


@torch.inference_mode()
def generate_images(model: Cheers, prompts: list[Prompt], *, steps: int | None = None, guidance: float | None = None,
                    shift: float | None = None, size: int | tuple[int, int] | None = None, seed: int | None = None,
                    noise: Tensor | None = None, negative: Prompt | None = None,
                    sources: Pictures | list[list[Picture]] | None = None, dummy_pixels: Pictures | None = None, first: int = 0,
                    grid: str = "exact", solver: str = "euler", interval: tuple[float, float] = (0, math.inf),
                    watch: Callable[[Step], None] | None = None, progress: bool = False) -> Tensor:
    """Paints one picture per prompt -> (B, 3, H, W) in [0, 1], float32. Raises ValueError for settings that cannot be.

    prompts: strings, lists of messages, or complete lists of ids ending in `<im_start>`.
    steps, guidance, shift: the checkpoint's defaults when left out; guidance 1 is the conditional model alone.
    size: S or (W, H), multiples of 2f; the weights have seen only the square they were trained on.
    seed: picture k is fixed by (seed, first + k). noise: (B, z', h, w) instead of seeded noise.
    negative: replaces the unconditional prompt (all words `<no_mean>`).
    sources: pictures to edit, one per prompt (or a list per prompt, the first of which is edited). They stand in the
        conditional and the unconditional prompt, and the flow starts a tenth of the way towards the first.
    grid: "exact" or "released" (`schedule`). solver: "euler", or "adams", of second order at the same cost.
    interval: guidance is left out, and its cost with it, where t is not in [low, high).
    dummy_pixels: (B, 3, S, S) or B pictures, the noise before prompts.
    watch: called with every `Step`. progress: shows a bar."""
    if isinstance(prompts, str) or not all(len(prompt) for prompt in prompts) or not len(prompts):
        raise ValueError("prompts must be a list of prompts, none of them empty")
    steps, guidance, shift = complete(model, steps=steps, guidance=guidance, shift=shift).values()
    width, height = picture_size(model, size)
    shape = (model.config.vae.latent_channels, height // model.config.vae.factor, width // model.config.vae.factor)
    start, causal, z_source, visuals = 0.0, 0, None, [[] for _ in prompts]
    if sources is not None:
        steps, start = int(0.9 * steps), SOURCE_SHARE
        if len(sources) != len(prompts) or width != height or steps < 1:
            raise ValueError("editing needs a source picture for each prompt, a square size and at least 2 steps")
        encoded, visuals = zip(*(look(model, s if isinstance(s, list) else [s], width) for s in sources))
        shape, *others = {tuple(latents[0].shape[1:]) for latents in encoded}  # a tensor's size is the result's
        if others:
            raise ValueError("pictures that are edited together must have one size")
        z_source = torch.cat([latents[0] for latents in encoded]).float()

    rows = [prompt_ids(model, p, v, painting=True) for p, v in zip(prompts, visuals)]
    if guidance != 1:
        rows += [drop_text(row, model.config) if negative is None else prompt_ids(model, negative, v, painting=True)
                 for row, v in zip(rows, visuals)]
        visuals = visuals * 2
    if dummy_pixels is not None:
        if len(dummy_pixels) != len(prompts):
            raise ValueError(f"there are {len(dummy_pixels)} dummy pictures for {len(prompts)} prompts")
        dummies = look(model, dummy_pixels, model.config.siglip.image_size)[1] * (len(rows) // len(prompts))
        causal = len(dummies[0])
        rows = [[model.config.special.image] * causal + row for row in rows]
        visuals = [[dummy, *v] for dummy, v in zip(dummies, visuals)]
    prefix = extend(model, None, rows, [tokens for v in visuals for tokens in v], causal)
    if noise is None:
        seed = secrets.randbits(32) if seed is None else seed
        noise = torch.stack([seeded_noise(seed, first + k, shape) for k in range(len(prompts))])
    if tuple(noise.shape) != (len(prompts), *shape):
        raise ValueError(f"noise has shape {list(noise.shape)} instead of {[len(prompts), *shape]}")
    z = noise.to(model.device, torch.float32)                                      # (B, z', h, w)   z_0
    if z_source is not None:
        z = SOURCE_SHARE * z_source + (1 - SOURCE_SHARE) * z
    if solver not in ("euler", "adams"):
        raise ValueError(f'solver is "euler" or "adams", not {solver!r}')
    for step in denoise(model, prefix, z, guidance, *schedule(steps, shift, grid, start), progress, solver, interval):
        if watch:
            watch(step)
    return model.decode_image(step.result).float().clamp(0, 1)                     # (B, 3, H, W)


# ---- text, and answers with pictures ---------------------------------------------------------------------------

def choose(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """The next token from logits (vocabulary,): the likeliest at temperature 0, else drawn from the smallest set of
    tokens whose probabilities sum to top_p."""
    if temperature == 0:
        return int(logits.argmax())
    logits = logits.float().cpu()
    probabilities, order = ((logits - logits.max()) / temperature).softmax(-1).sort(descending=True)
    probabilities[probabilities.cumsum(-1) - probabilities >= top_p] = 0  # those before it suffice
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


def stream(model: Cheers, prompts: list[Prompt], images: list[Pictures] | None, max_new_tokens: int, temperature: float,
           top_p: float, seed: int | None, picture_tokens: int = 0,
           paint: Callable | None = None) -> Iterator[tuple[int, int | Tensor]]:
    """Token ids of R answers as they come, each with its row 0 … R-1, the ends of the turns not included.

    When a token opens a picture and `paint` is given, paint(ids so far, visual tokens so far) -> final latents
    (1, z', h, w) come in its place, the answer's context gets their visual tokens at t = 1 (picture_tokens with
    `<im_end>`), and it goes on."""
    if not 0 <= temperature < math.inf or not 0 < top_p <= 1 or max_new_tokens < 1:
        raise ValueError("temperature must be at least 0, top_p in (0, 1], and the number of new tokens at least 1")
    if images is not None and len(images) != len(prompts):
        raise ValueError(f"there are {len(prompts)} prompts, but pictures for {len(images)}; give each prompt a list")
    special, room = model.config.special, model.config.qwen.max_position_embeddings
    seed = secrets.randbits(32) if seed is None else seed
    generators = [torch.Generator().manual_seed(seed + k) for k in range(len(prompts))]
    visuals = [look(model, p, model.config.siglip.image_size)[1] for p in images or [()] * len(prompts)]
    rows = [prompt_ids(model, prompt, v, painting=False) for prompt, v in zip(prompts, visuals)]
    prefix, new, seen, live = None, rows, sum(visuals, []), list(range(len(rows)))
    for _ in range(max_new_tokens):
        if not live:
            return
        prefix = extend(model, prefix, new, seen)
        logits = model.qwen.logits(prefix.hidden)                                  # (R, vocabulary)
        if paint:  # only a painted picture may stand at a placeholder
            logits[:, [token for token in (special.image, special.image_gen, special.image_end) if token >= 0]] = -math.inf
        new, seen = [[] for _ in rows], []                                         # padding for rows that have ended
        for k in live:
            token = choose(logits[k], temperature, top_p, generators[k])
            opens = paint and token == special.image_start
            if opens and len(rows[k]) + picture_tokens >= room:
                raise ValueError("no room is left for the answer's picture: choose a smaller size, or say less before it")
            if token == special.end_of_turn or len(rows[k]) >= room:
                continue
            new[k] = [token]
            if opens:
                yield k, (latents := paint(rows[k] + new[k], visuals[k]))
                seen.append(model.tokenize_image(latents)[0][0])
                new[k] += [special.image] * len(seen[-1]) + [special.image_end]
                visuals[k] = [*visuals[k], seen[-1]]
            else:
                yield k, token
            rows[k] = rows[k] + new[k]
        live = [k for k in live if new[k]]


@torch.inference_mode()
def generate_texts(model: Cheers, prompts: list[Prompt], images: list[Pictures] | None = None, *, max_new_tokens: int = 512,
                   temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None) -> list[str | list[int]]:
    """Answers prompts of any lengths in one batch: text in, text out; ids in, ids out (the end of the turn not included).

    images: a list of pictures for each prompt. Answer k is drawn with seed + k, as if it were alone."""
    answers = [[] for _ in prompts]
    for k, token in stream(model, prompts, images, max_new_tokens, temperature, top_p, seed):
        answers[k].append(token)
    return [ids if is_ids(prompt) else model.tokenizer.decode(ids).strip() for prompt, ids in zip(prompts, answers)]


def generate_text(model: Cheers, prompt: Prompt, images: Pictures | None = None, **settings) -> str | list[int]:
    """Answers one prompt about pictures; settings are those of `generate_texts`."""
    return generate_texts(model, [prompt], None if images is None else [images], **settings)[0]


@torch.inference_mode()
def converse(model: Cheers, messages: list[dict[str, str]], images: Pictures | None = None, *, max_new_tokens: int = 512,
             temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None, first: int = 0, progress: bool = False,
             size: int | tuple[int, int] | None = None, **painting: float | None) -> Iterator[str | Picture]:
    """The assistant's next turn: yields pieces of text and pictures in the order they arise. An answer that opens
    `<im_start>` paints there, on all that was said before, and goes on; its k-th picture is fixed by (seed, first + k).

    painting: steps, guidance, shift. Everything else is as in `generate_text` and `generate_images`."""
    steps, guidance, shift = complete(model, **painting).values()
    seed = secrets.randbits(32) if seed is None else seed
    (width, height), factor = picture_size(model, size), model.config.vae.factor
    shape, indices = (model.config.vae.latent_channels, height // factor, width // factor), itertools.count(first)

    def paint(ids: list[int], visuals: list[Tensor]) -> Tensor:
        z = seeded_noise(seed, next(indices), shape)[None].to(model.device)        # (1, z', h, w)   z_0
        rows = [ids] if guidance == 1 else [ids, drop_text(ids, model.config)]
        prefix = extend(model, None, rows, visuals * len(rows))
        for step in denoise(model, prefix, z, guidance, *schedule(steps, shift), progress):
            pass
        return step.result

    decoder = DecodeStream(skip_special_tokens=True)  # holds back bytes that are not a character yet
    picture_tokens = shape[1] * shape[2] // 4 + 1     # and `<im_end>`
    pictures = None if images is None else [images]
    for _, piece in stream(model, [messages], pictures, max_new_tokens, temperature, top_p, seed, picture_tokens, paint):
        if isinstance(piece, Tensor):
            yield to_picture(model.decode_image(piece)[0])
        elif text := decoder.step(model.tokenizer.backend, piece):
            yield text


# ---- command line ----------------------------------------------------------------------------------------------

def save_png(picture: Picture, path: Path, prompt: str, seed: int, settings: dict) -> None:
    """Writes a PNG that carries its prompt, seed and settings; under another name first."""
    info = PngImagePlugin.PngInfo()
    for key, value in (("prompt", prompt), ("seed", str(seed)), ("settings", json.dumps(settings))):
        info.add_itxt(key, value)
    picture.save(partial := path.with_name(f".{path.name}.partial"), "PNG", pnginfo=info)
    os.replace(partial, path)


def output_path(out: Path, prompt: str, seed: int, index: int) -> Path:
    """`out` if it names a PNG, else a name in the folder `out`. Makes the folder; ValueError if it cannot."""
    words = "-".join(re.findall(r"\w+", prompt.lower()))[:40] or "picture"
    path = out if out.suffix.lower() == ".png" else out / f"{words}-{seed}-{index}.png"
    make_folder(path.parent, out)
    return path


def parse_size(text: str) -> tuple[int, int]:
    if not (match := re.fullmatch(r"(\d+)(?:x(\d+))?", text.lower())):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 512 or 512x768")
    return int(match[1]), int(match[2] or match[1])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Paint, answer, edit and talk with Cheers.", allow_abbrev=False)
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="what to paint, ask, change or say")
    add("--model", default=str(Path(__file__).parent / "weights/tiny"), help="folder or hub name, e.g. ai9stars/Cheers")
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
    args = parser.parse_args()
    args.answers = args.chat or bool(args.image) and not args.edit
    painting_only = args.released or args.heatmaps or args.negative is not None or args.num != 1
    suffix = args.out.suffix.lower()
    for wrong, sentence in (
        (args.edit and (args.chat or not args.image), "--edit needs the picture to change, --image FILE, and no --chat"),
        (not args.prompts and not args.chat, "a PROMPT is missing, for example: a red circle"),
        (args.answers and painting_only, "--released, --heatmaps, --negative and --num are for painting and editing"),
        (args.num < 1, "--num must be at least 1"),
        (not 0 <= (args.seed or 0) < 2**63, "--seed must be in [0, 2**63)"),
        (not all(args.prompts), "a PROMPT is empty"),
        (suffix in ".jpg .jpeg .webp .gif".split(), "pictures are written as PNG; give --out a name.png or a folder"),
        (suffix == ".png" and (args.chat or not args.answers and len(args.prompts) * args.num > 1),
         "several pictures do not fit into one file; give --out a folder"),
    ):
        if wrong:
            parser.error(sentence)
    return args


def paint_all(model: Cheers, args: argparse.Namespace, images: list[Picture], settings: dict, seed: int) -> None:
    """Every prompt `--num` times, in batches; prints the path of each picture."""
    width, height = size = picture_size(model, args.size)
    prompts = [prompt for prompt in args.prompts for _ in range(args.num)]
    paths = [output_path(args.out, prompt, seed, k) for k, prompt in enumerate(prompts)]  # refused before the work
    shared = settings | {"size": size, "grid": "released" if args.released else "exact", "negative": args.negative}
    chunk = max(1, 4 * 512 * 512 // (width * height))  # four official pictures at once
    for start in range(0, len(prompts), chunk):
        batch, dummies, seen = prompts[start : start + chunk], None, []
        if args.released and not args.edit:  # the release's picture of noise before each prompt, here with a seed
            dummies = [dummy_picture(seed, start + k) for k in range(len(batch))]
        pixels = generate_images(
            model, batch, seed=seed, first=start, sources=[images] * len(batch) if args.edit else None, progress=True,
            dummy_pixels=dummies, watch=lambda step: seen.append((step.t, step.gate)), **shared)
        for k, picture in enumerate(pixels):
            path, about = paths[start + k], (batch[k], seed, shared | {"index": start + k})
            if args.heatmaps:
                times, gates = [t for t, _ in seen], [gate[k] for _, gate in seen]
                save_png(draw_heatmaps(times, gates), path.with_name(f"{path.stem}-heatmaps.png"), *about)
                curve = draw_curves({"gate": list(zip(times, intensities(gates)))}, "mean |G|, normalised to [0, 1], over t")
                save_png(curve, path.with_name(f"{path.stem}-intensity.png"), *about)
            save_png(to_picture(picture), path, *about)
            print(path, flush=True)


def talk(model: Cheers, args: argparse.Namespace, images: list[Picture], settings: dict, seed: int) -> None:
    """Answers each prompt in turn, or what is typed; text streams, pictures are written where they arise."""
    settings |= dict(max_new_tokens=args.max_tokens, temperature=args.temperature, top_p=args.top_p)
    messages, painted, looks = [], 0, f"{LOOK}\n" * len(images)
    for prompt in (args.prompts if args.chat else [" ".join(args.prompts)]) or iter(read_line, ""):
        messages.append({"role": "user", "content": looks + prompt})
        looks, answer, shown = "", "", "\n"
        shared = settings | {"seed": seed, "size": args.size, "first": painted, "progress": True}
        for piece in converse(model, messages, images, **shared):
            answer += piece if isinstance(piece, str) else LOOK
            if not isinstance(piece, str):
                path = output_path(args.out, prompt, seed, painted)
                save_png(piece, path, prompt, seed, settings | {"index": painted})
                images, painted = [*images, piece], painted + 1
                piece = "\n" * (shown[-1] != "\n") + f"{path}\n"
            print(piece, end="", flush=True)
            shown = piece
        print("\n" * (shown[-1] != "\n"), end="", flush=True)
        messages.append({"role": "assistant", "content": answer})


def read_line() -> str:
    """A line from the keyboard or a pipe; empty at its end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def keep_freed_memory() -> None:
    """glibc gives large tensors back to the system, and clearing fresh pages for the next ones is a third of an official step
    on a CPU. From here on they stay with the process; other C libraries know nothing of it."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(-4, 0)   # M_MMAP_MAX: nothing gets pages of its own
        library.mallopt(-1, -1)  # M_TRIM_THRESHOLD: and nothing that is free is given back


def open_model(name: str, device: torch.device | str | None, dtype: str | None) -> Cheers:
    """On the best device when left out; as stored when `dtype` is left out, but in float32 on CPUs."""
    try:
        device = torch.device(device or best_device())
        torch.ones(1, device=device).item()
    except Exception as error:  # each backend has its own
        raise ValueError(f"--device {device} is not available here ({str(error).splitlines()[0]}); try cpu") from None
    precision = getattr(torch, dtype) if dtype else torch.float32 if device.type == "cpu" else None
    keep_freed_memory()
    return Cheers.from_pretrained(name, device, precision)


def main() -> None:
    args = parse_arguments()
    images = [open_picture(path) for path in args.image]
    model = open_model(args.model, args.device, args.dtype)
    settings = complete(model, steps=args.steps, guidance=args.guidance, shift=args.shift)
    seed = secrets.randbits(32) if args.seed is None else args.seed
    (talk if args.answers else paint_all)(model, args, images, settings, seed)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"sample.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\nsample.py: interrupted; finished pictures are kept")
