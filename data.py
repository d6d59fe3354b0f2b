"""From conversations and pictures to batches.

A sample is what the release's JSON lines hold: {"conversations": [{"from": "human"|"gpt", "value": text}, …],
"image": pictures in the order of their placeholders}. In a text, `<im_start><image><im_end>` stands for a picture to look
at and `<im_start><image_gen><im_end>` for one to paint. Everything random about a sample comes from a generator seeded
by (seed, source, epoch, line), so it depends neither on ranks nor on batches nor on restarts.

Shape letters as in cheers.py.
"""

import json
import math
import os
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tokenizers
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

import shapes
from cheers import IGNORE, Batch, CheersConfig
from qwen import SYSTEM, Tokenizer, qwen_bpe
from vae import PATCH

LOOK = "<im_start><image><im_end>"
PAINT = "<im_start><image_gen><im_end>"
PAINT_REQUEST = "\nBased on the above description, generate an image."  # ends the release's text-to-image prompts
TEXT_DROPOUT = 0.2
MAX_TOKENS = 4096  # of a training sample; longer ones would fill a GPU
MAX_RATIO = 50  # a longer side this many times the shorter leaves nothing to see


def make_folder(folder: Path, out: Path) -> None:
    """Raises ValueError, which names `out`, when the folder cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(0, "no permission")
    except OSError as error:
        raise ValueError(f"cannot write {out} ({error.strerror}); choose another --out") from None


# ---- pictures --------------------------------------------------------------------------------------------------

def open_picture(path: str | Path) -> Image.Image:
    """Any picture file -> RGB, turned upright as its EXIF says; transparency becomes white, 16 bits become 8.

    Raises FileNotFoundError, or ValueError for what is damaged, too large to be honest, or too narrow."""
    try:
        with Image.open(path) as picture:
            picture = ImageOps.exif_transpose(picture)
            picture.load()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no picture {path}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{path} has too many pixels to open safely; make it smaller first") from None
    except Exception as error:  # a damaged file can raise nearly anything inside a decoder
        raise ValueError(f"{path} is damaged or not a picture ({error})") from None
    return to_rgb(picture)


def to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit gray, which Pillow would clip at 255
        picture = Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def check_ratio(picture: Image.Image) -> None:
    short, long = sorted(picture.size)
    if long > MAX_RATIO * short:
        raise ValueError(f"a picture of {picture.width}x{picture.height} is too narrow; crop it to at most {MAX_RATIO}:1")


def fit_inside(picture: Image.Image, side: int) -> Image.Image:
    """The transform for understanding: longer side -> `side`, bicubic, then black bars to a square, centred."""
    check_ratio(picture)
    scale = side / max(picture.size)
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    square = Image.new("RGB", (side, side))
    square.paste(picture.resize(size, Image.Resampling.BICUBIC), ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def fill_square(picture: Image.Image, side: int) -> Image.Image:
    """The transform for pictures to paint: shorter side -> `side`, bicubic, then the centre is cut out."""
    check_ratio(picture)
    scale = side / min(picture.size)
    size = tuple(max(side, round(length * scale)) for length in picture.size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return picture.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))


def to_pixels(picture: Image.Image) -> Tensor:
    """RGB picture -> (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255


def to_picture(pixels: Tensor) -> Image.Image:
    """(3, H, W) -> RGB picture, clamped to [0, 1]."""
    return Image.fromarray((pixels.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def dummy_picture(seed: int, index: int) -> Image.Image:
    """Noise, 256x256, as the released code shows it before prompts without pictures; here fixed by (seed, index)."""
    return Image.fromarray(np.random.default_rng([seed, index, 1]).integers(0, 256, (256, 256, 3), dtype=np.uint8))


def contact_sheet(pixels: Tensor, columns: int, scale: int = 3) -> Image.Image:
    """(B, 3, H, W) -> all pictures in rows, `scale` times as large; black where the last row has no more."""
    pixels = torch.cat([pixels, pixels.new_zeros(-len(pixels) % columns, *pixels.shape[1:])])
    rows = [torch.cat(list(row), dim=2) for row in pixels.split(columns)]          # (3, H, columns·W) each
    sheet = to_picture(torch.cat(rows, dim=1))
    return sheet.resize((scale * sheet.width, scale * sheet.height), Image.Resampling.NEAREST)


# ---- tensors drawn: the gate's heat maps (Figure 5) ------------------------------------------------------------

def draw_heatmaps(times: list[float], gates: list[Tensor]) -> Image.Image:
    """Figure 5a: |G| at every position (black, red, yellow, white), one tile per step in reading order, t written below."""
    maps = torch.stack(gates).abs().float().cpu().numpy()                          # (steps, h, w)
    maps = 3 * (maps - maps.min()) / max(maps.max() - maps.min(), 1e-12)
    colors = (np.stack([maps, maps - 1, maps - 2], axis=-1).clip(0, 1) * 255).astype(np.uint8)
    columns, tile = math.ceil(math.sqrt(len(maps))), 96
    high = round(tile * maps.shape[1] / maps.shape[2])
    sheet = Image.new("RGB", (columns * (tile + 4), math.ceil(len(maps) / columns) * (high + 16)), "white")
    for i, (t, values) in enumerate(zip(times, colors)):
        left, top = i % columns * (tile + 4), i // columns * (high + 16)
        sheet.paste(Image.fromarray(values).resize((tile, high), Image.Resampling.NEAREST), (left, top))
        ImageDraw.Draw(sheet).text((left, top + high + 2), f"t = {t:.2f}", fill="black")
    return sheet


def intensities(gates: list[Tensor]) -> list[float]:
    """Figure 5b: mean |G| of each step, normalised over the run to [0, 1]."""
    means = torch.stack([gate.abs().float().mean() for gate in gates])
    return ((means - means.min()) / (means.max() - means.min()).clamp(min=1e-12)).tolist()


INKS = ((220, 40, 40), (50, 90, 220), (40, 170, 70), (150, 60, 190), (240, 130, 30), (130, 130, 130), (20, 20, 20))


def draw_curves(curves: dict[str, list[tuple[float, float]]], title: str) -> Image.Image:
    """Lines through points (x, y), x ascending, at most seven by name; the y axis begins at 0 or below."""
    width, height, margin = 480, 300, 40
    pen = ImageDraw.Draw(picture := Image.new("RGB", (width, height), "white"))
    points = np.array(sum(curves.values(), []))                                    # (all points, 2)
    low, high = np.minimum(points.min(0), [np.inf, 0]), points.max(0)
    corner, scale = np.array([margin, height - margin]), np.array([width - 2 * margin, 2 * margin - height])
    at = corner + (points - low) / np.maximum(high - low, 1e-12) * scale
    pen.rectangle((margin, margin, width - margin, height - margin), outline="gray")
    for ink, (name, curve), start in zip(INKS, curves.items(), np.cumsum([0, *map(len, curves.values())])):
        pen.line([tuple(point) for point in at[start : start + len(curve)]], fill=ink, width=2)
        pen.text((margin + 4, margin + 4 + 12 * INKS.index(ink)), name if len(curves) > 1 else "", fill=ink)
    pen.text((margin, 14), title, fill="black")
    for value, place in ((low[0], (margin, height - 36)), (high[0], (width - 2 * margin, height - 36)),
                         (low[1], (6, height - margin - 12)), (high[1], (6, margin))):
        pen.text(place, f"{value:.3g}", fill="black")
    return picture


# ---- conversations ---------------------------------------------------------------------------------------------

@dataclass
class Sample:
    ids: list[int]           # placeholders repeated once per visual token
    labels: list[int]        # IGNORE where nothing is to be predicted
    pixels: list[Tensor]     # (3, S, S) each
    noise: list[Tensor]      # (z', h, w) each
    t: list[float]


def encode_conversation(turns: list[dict], tokenizer: Tokenizer, config: CheersConfig) -> tuple[list[int], list[int]]:
    """Turns [{"from", "value"}, …] -> ids and labels, one placeholder per picture. Supervised are the assistant's content,
    its `<im_start>` and the end of its turns; never `<im_end>`, headers or the newline after a turn."""
    special = config.special
    ids = tokenizer.encode(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n") if turns[0]["from"] != "system" else []
    labels = [IGNORE] * len(ids)
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    for turn in turns:
        header = tokenizer.encode(f"<|im_start|>{roles[turn['from']]}\n")
        content = tokenizer.encode(turn["value"].strip()) + [special.end_of_turn]
        newline, silent = tokenizer.encode("\n"), {special.image, special.image_gen, special.image_end}
        ids += header + content + newline
        spoken = [token if turn["from"] == "gpt" and token not in silent else IGNORE for token in content]
        labels += [IGNORE] * len(header) + spoken + [IGNORE] * len(newline)
    return ids, labels


def drop_text(ids: list[int], config: CheersConfig) -> list[int]:
    """The unconditional prompt: every token but `<im_start>`, `<im_end>` and placeholders becomes `<no_mean>`."""
    special = config.special
    kept = {special.image, special.image_gen, special.image_start, special.image_end}
    return [token if token in kept or token < 0 else special.no_mean for token in ids]


def expand(ids: list[int], counts: list[int], config: CheersConfig, labels: list[int] | None = None):
    """Repeats the k-th placeholder counts[k] times, its label too -> ids, labels."""
    remaining = iter(counts)
    placeholders = (config.special.image, config.special.image_gen)
    repeats = [next(remaining) if token in placeholders or token < 0 else 1 for token in ids]
    return tuple(np.repeat(values, repeats).tolist() for values in (ids, labels or ids))


def make_sample(turns: list[dict], pictures: list[Image.Image], tokenizer: Tokenizer, config: CheersConfig,
                rng: np.random.Generator, shift: float = 1.0) -> Sample:
    """One conversation with its pictures -> a sample: pictures at the model's side, noise and t of each, text dropout. Times
    are uniform in (0, 1), then shifted as in sampling."""
    side = config.siglip.image_size
    grid = side // config.vae.factor
    ids, labels = encode_conversation(turns, tokenizer, config)
    placeholders = [token for token in ids if token in (config.special.image, config.special.image_gen)]
    if len(placeholders) != len(pictures):
        raise ValueError(f"the text has {len(placeholders)} placeholders for {len(pictures)} pictures")
    painted = [token == config.special.image_gen for token in placeholders]
    if any(painted) and rng.random() < TEXT_DROPOUT:
        ids, labels = drop_text(ids, config), [IGNORE] * len(ids)
    ids, labels = expand(ids, [grid * grid // 4] * len(pictures), config, labels)
    if len(ids) > (limit := min(MAX_TOKENS, config.qwen.max_position_embeddings)):
        raise ValueError(f"{len(ids)} tokens are more than {limit}")
    pixels = [to_pixels((fill_square if paint else fit_inside)(p, side)) for p, paint in zip(pictures, painted)]
    shape = config.vae.latent_channels, grid, grid
    noise = [torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) for _ in pictures]
    uniform = [float(rng.random(dtype=np.float32)) for _ in painted]
    t = [shift * u / (1 + (shift - 1) * u) if paint else 1.0 for u, paint in zip(uniform, painted)]
    return Sample(ids, labels, pixels, noise, t)


def pack(lengths: list[int], capacity: int) -> list[list[int]]:
    """Which samples share a row of `capacity` tokens: the longest first, each into the first row that has room."""
    rows: list[list[int]] = []
    for k in sorted(range(len(lengths)), key=lambda k: -lengths[k]):
        fitting = (row for row in rows if sum(lengths[i] for i in row) + lengths[k] <= capacity)
        if row := next(fitting, None):
            row.append(k)
        else:
            rows.append([k])
    return rows


def collate(samples: list[Sample], config: CheersConfig) -> Batch:
    """Samples, also none at all, -> a batch, in rows of the length that leaves least padding. Rows stay about as short as the
    language model is wide: up to there attention costs less than a sixth of the matrix products."""
    lengths = [len(sample.ids) for sample in samples]
    longest = max(lengths, default=0)
    width = config.qwen.hidden_size
    packings = (pack(lengths, capacity) or [[]] for capacity in range(longest, longest + width, width // 12))
    fullest = lambda rows: max(sum(lengths[k] for k in row) for row in rows)
    rows = min(packings, key=lambda rows: len(rows) * fullest(rows))
    length = max(1, math.ceil(fullest(rows) / 8)) * 8  # few distinct lengths: kernels are chosen per shape
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    labels, segments = torch.full_like(ids, IGNORE), torch.full_like(ids, len(samples))  # padding is the last segment
    for r, row in enumerate(rows):
        start = 0
        for number, k in enumerate(row):
            here = slice(start, start := start + lengths[k])
            ids[r, here], labels[r, here] = torch.tensor(samples[k].ids), torch.tensor(samples[k].labels)
            segments[r, here] = number
    ordered = [samples[k] for row in rows for k in row]
    side, grid = config.siglip.image_size, config.siglip.image_size // config.vae.factor
    pixels = torch.cat([torch.zeros(0, 3, side, side), *(p[None] for s in ordered for p in s.pixels)])
    noise = torch.cat([torch.zeros(0, config.vae.latent_channels, grid, grid), *(z[None] for s in ordered for z in s.noise)])
    return Batch(ids, labels, pixels, noise, torch.tensor([t for s in ordered for t in s.t], dtype=torch.float32), segments)


# ---- files of samples ------------------------------------------------------------------------------------------

def line_offsets(path: Path, spare: Path) -> np.ndarray:
    """Where each line begins, (lines,) uint64, memory-mapped from an index file that is built once, beside the file or, where
    that folder cannot be written, in `spare`: millions of lines are never held in memory."""
    try:
        size, changed = path.stat().st_size, path.stat().st_mtime_ns
    except OSError as error:
        raise FileNotFoundError(f"cannot open {path} ({error.strerror})") from None
    folder = path.parent if os.access(path.parent, os.W_OK) else spare
    index = folder / f".{path.name}-{size}-{changed}.index"
    if not index.exists():
        partial = index.with_suffix(f".{os.getpid()}")
        bar = tqdm(total=size, desc=f"index of {path.name}", unit="B", unit_scale=True)
        with open(path, "rb") as lines, open(partial, "wb") as offsets, bar:
            begin = 0
            while block := lines.read(1 << 24):
                ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + (lines.tell() - len(block))
                begins = np.append(begin, ends + 1)
                begin = begins[-1]
                begins[:-1][ends - begins[:-1] > 1].astype(np.uint64).tofile(offsets)  # an empty line is no sample
                bar.update(len(block))
            np.array([begin][: int(size - begin > 1)], np.uint64).tofile(offsets)  # the last line may lack its end
        os.replace(partial, index)
    if not index.stat().st_size:
        raise ValueError(f"{path} holds no samples")
    return np.memmap(index, np.uint64, "r")


def shuffled(position: int, count: int, seed: list[int]) -> int:
    """Where a shuffle of range(count) takes `position`, without writing the shuffle down: a Feistel network permutes the
    next power of four, and what falls outside is permuted again."""
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    keys = np.random.default_rng(seed).integers(1 << 32, size=4).tolist()
    while True:
        left, right = position >> half, position & ((1 << half) - 1)
        for key in keys:
            mixed = ((right ^ key) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ (mixed >> (64 - half))
        position = left << half | right
        if position < count:
            return position


class JsonLines:
    """A file of samples in the release's format. `kind` ("understanding", "generation" or "text") is that of its first line."""

    def __init__(self, path: Path, images: Path, spare: Path):
        self.name, self.path, self.images = str(path.resolve()), path, images
        self.offsets = line_offsets(path, spare)
        self.lines = len(self.offsets)
        first = self.line(0)
        with suppress(ValueError):  # some encoders write \u003c for <
            first = json.dumps(json.loads(first)).encode()
        self.kind = "generation" if b"<image_gen>" in first else "understanding" if b"<image>" in first else "text"

    def line(self, number: int) -> bytes:
        with open(self.path, "rb") as lines:
            lines.seek(int(self.offsets[number]))
            return lines.readline()

    def read(self, line: int, rng: np.random.Generator, progress: float) -> tuple[list[dict], list[Image.Image]]:
        content = json.loads(self.line(line))
        paths = content.get("image") or []
        if isinstance(paths, str):
            paths = json.loads(paths) if paths.startswith("[") else filter(str.strip, re.split("[,;]", paths))
        return content["conversations"], [open_picture(self.images / path.strip()) for path in paths]


@dataclass
class Step:
    """What one process needs for one step, and what became of its lines."""

    batches: list
    tokens: tuple[int, int] = (0, 0)            # without and with padding
    pictures: tuple[int, int] = (0, 0)          # all, and those to paint
    seen: list[int] = field(default_factory=list)             # lines read, by source
    damaged: list[int] = field(default_factory=list)          # those of them that were left out
    skipped: list[dict] = field(default_factory=list)         # the same as {"source", "line", "reason"}
    positions: dict[str, int] = field(default_factory=dict)   # lines of each source that all processes have taken by then


class Mixture(Dataset):
    """Item k is step k: `batch` lines drawn from the sources by weight, of which process `rank` of `world` takes its share in
    batches of at most `micro`. Every pass over a source takes each of its lines once, in an order of its own; all of it
    follows from the seed and from the positions of the sources, whatever the number of processes."""

    def __init__(self, sources: list, weights: list[float], batch: int, micro: int, seed: int, tokenizer: Tokenizer,
                 config: CheersConfig, steps: int, shift: float = 1.0, rank: int = 0, world: int = 1):
        self.sources, self.weights = sources, np.array(weights) / sum(weights)
        self.batch, self.micro, self.seed, self.steps = batch, micro, seed, steps
        self.tokenizer, self.config, self.shift, self.rank, self.world = tokenizer, config, shift, rank, world
        self.go_to(0, {})

    def go_to(self, step: int, positions: dict[str, int]) -> None:
        """Steps from here on follow one that left the sources at these positions."""
        self.step, self.positions = step, np.array([positions.get(source.name, 0) for source in self.sources])

    def choose(self, step: int) -> np.ndarray:
        """The source of each line of a step, (batch,)."""
        return np.random.default_rng([1, self.seed, step]).choice(len(self.sources), self.batch, p=self.weights)

    def complete(self, samples: list[Sample]) -> list[Sample]:
        """Sharded over many processes, every part of the model must run in each of them, or the others wait for ever. So where
        nothing is to be painted, an empty picture is; its t = 1 says that its loss does not count."""
        if self.world == 1 or any(t < 1 for sample in samples for t in sample.t):
            return samples
        side, grid = self.config.siglip.image_size, self.config.siglip.image_size // self.config.vae.factor
        m, z = grid * grid // 4, torch.zeros(self.config.vae.latent_channels, grid, grid)
        return [*samples, Sample([self.config.special.image_gen] * m, [IGNORE] * m, [torch.zeros(3, side, side)], [z], [1.0])]

    def __getitem__(self, step: int) -> Step:
        while self.step < step:  # steps are asked for in ascending order
            self.positions += np.bincount(self.choose(self.step), minlength=len(self.sources))
            self.step += 1
        positions, samples, skipped = self.positions.copy(), [], []
        seen, damaged = ([0] * len(self.sources) for _ in range(2))
        for i, k in enumerate(self.choose(step).tolist()):
            source, (epoch, position) = self.sources[k], divmod(int(positions[k]), self.sources[k].lines)
            positions[k] += 1
            if i % self.world != self.rank:
                continue
            line = shuffled(position, source.lines, [2, self.seed, k, epoch])
            rng = np.random.default_rng([3, self.seed, k, epoch, line])
            seen[k] += 1
            try:
                turns, pictures = source.read(line, rng, step / self.steps)
                samples.append(make_sample(turns, pictures, self.tokenizer, self.config, rng, self.shift))
            except Exception as error:  # a damaged line can be damaged in any way; the run stops when there are many
                damaged[k] += 1
                skipped.append({"source": source.name, "line": line, "reason": f"{type(error).__name__}: {error}"})
        starts = range(0, math.ceil(self.batch / self.world), self.micro)  # as many in every process
        batches = [collate(self.complete(samples[start : start + self.micro]), self.config) for start in starts]
        tokens = sum(len(sample.ids) for sample in samples), sum(batch.ids.numel() for batch in batches)
        times = [t for sample in samples for t in sample.t]
        taken = {source.name: int(position) for source, position in zip(self.sources, positions)}
        return Step(batches, tokens, (len(times), sum(t < 1 for t in times)), seen, damaged, skipped, taken)


def check_damage(sources: list, seen: np.ndarray, damaged: np.ndarray, limit: float, log: Path) -> None:
    """Raises ValueError when too large a share of a source's lines (of one pass or 10,000 at least) is damaged."""
    for source, read, bad in zip(sources, seen, damaged):
        if bad > limit * max(read, min(source.lines, 10_000)):
            raise ValueError(f"{bad} of {read} lines of {source.name} are damaged, see {log}; mend them or raise --skip-limit")


def ignore_signals(_worker: int) -> None:
    """torchrun and terminals send their signals to the processes that read samples too, which are still needed."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


# ---- the toy world as a source of samples ----------------------------------------------------------------------

def human(text: str) -> dict:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict:
    return {"from": "gpt", "value": text}


def generation(rng: np.random.Generator, objects: int, side: int):
    scene = shapes.random_scene(rng, objects)
    # Full descriptions teach the words, short prompts what may be left open; the wider the world, the more of these.
    caption = shapes.describe(scene) if rng.random() < (0.2 if objects > 2 else 0.6) else shapes.caption(scene, rng)
    request = PAINT_REQUEST if rng.random() < 0.2 else ""
    return [human(caption + request), gpt(PAINT)], [shapes.draw(scene, side)]


def understanding(rng: np.random.Generator, objects: int, side: int):
    scene = shapes.random_scene(rng, objects)
    pairs = [*(shapes.question(scene, rng) for _ in range(2)), ("Describe the image.", shapes.describe(scene))]
    pairs[0] = (f"{LOOK}\n{pairs[0][0]}", pairs[0][1])
    return [turn for ask, answer in pairs for turn in (human(ask), gpt(answer))], [shapes.draw(scene, side)]


def editing(rng: np.random.Generator, objects: int, side: int):
    scene = shapes.random_scene(rng, objects)
    instruction, result = shapes.edit(scene, rng)
    return [human(f"{LOOK}\n{instruction}"), gpt(PAINT)], [shapes.draw(scene, side), shapes.draw(result, side)]


def sentence_and_picture(rng: np.random.Generator, objects: int, side: int):
    scene = shapes.random_scene(rng, objects)
    instruction, sentence, result = shapes.sentence_and_picture(scene, rng)
    turns = [human(f"{LOOK}\n{instruction}"), gpt(f"{sentence}\n{PAINT}")]
    return turns, [shapes.draw(scene, side), shapes.draw(result, side)]


def text_only(rng: np.random.Generator, objects: int, side: int):
    question, answer = shapes.text_question(rng)
    return [human(question), gpt(answer)], []


class ToySource:
    """An endless source of samples that are made on the fly. The world widens: one object, then two, then all four."""

    lines = 1 << 40

    def __init__(self, make: Callable, side: int):
        self.name, self.make, self.side = make.__name__, make, side

    def read(self, line: int, rng: np.random.Generator, progress: float) -> tuple[list[dict], list[Image.Image]]:
        return self.make(rng, 1 if progress < 0.08 else 2 if progress < 0.35 else 4, self.side)


TOY_MIX = {generation: 0.60, understanding: 0.25, editing: 0.10, sentence_and_picture: 0.03, text_only: 0.02}


def open_sources(files: list[str], images: Path | None, spare: Path, mix: dict[str, float], side: int) -> tuple[list, list]:
    """Sources and their weights: the toy world, or files (FILE or FILE:WEIGHT), without weights in the shares that `mix` gives
    to their kinds. Raises FileNotFoundError, or ValueError where a weight is missing."""
    if not files:
        return [ToySource(make, side) for make in TOY_MIX], list(TOY_MIX.values())
    named = [re.fullmatch(r"(.*?)(?::(\d*\.?\d+))?", text).groups() for text in files]
    sources = [JsonLines(Path(path), images or Path(path).parent, spare) for path, _ in named]
    if len({source.name for source in sources}) < len(sources):
        raise ValueError("--data names a file twice; give it a weight instead, FILE:WEIGHT")
    weights = [float(weight or 0) for _, weight in named]
    if not any(weight for _, weight in named):
        lines = {kind: sum(source.lines for source in sources if source.kind == kind) for kind in mix}
        weights = [mix.get(s.kind, 0) * s.lines / lines.get(s.kind, 1) for s in sources]
    for source, weight in zip(sources, weights):
        if not weight:
            raise ValueError(f"{source.name} ({source.kind}) needs a weight: give all files one, FILE:WEIGHT; "
                             f"without weights this recipe mixes {', '.join(mix)}")
    return sources, weights


def toy_tokenizer() -> Tokenizer:
    """A byte-level BPE over the toy world's words, with Qwen's chat tokens."""
    rng = np.random.default_rng(0)
    texts = [SYSTEM, "system\nuser\nassistant", PAINT_REQUEST]
    for _ in range(4000):
        for make in TOY_MIX:
            texts += [turn["value"] for turn in make(rng, 4, 32)[0]]
    backend = qwen_bpe(tokenizers.models.BPE())
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return Tokenizer(backend)


class ToyPictures(Dataset):
    """Item k is what VAE step k needs: pictures (B, 3, S, S), noise for their latents, a time for each (B, 1, 1, 1), and
    whether half of the steps are done."""

    sources = ()

    def go_to(self, step: int, positions: dict[str, int]) -> None:
        """Item k is the same wherever training begins."""

    def __init__(self, steps: int, batch: int, config: CheersConfig, seed: int):
        self.steps, self.batch, self.config, self.seed = steps, batch, config, seed

    def __getitem__(self, step: int) -> Step:
        rng = np.random.default_rng([self.seed, 1, step])
        side, vae = self.config.siglip.image_size, self.config.vae
        pixels = torch.stack([to_pixels(shapes.draw(shapes.random_scene(rng), side)) for _ in range(self.batch)])
        grid = PATCH * side // vae.factor
        noise = rng.standard_normal((self.batch, vae.z_channels, grid, grid), dtype=np.float32)
        t = torch.from_numpy(rng.random((self.batch, 1, 1, 1), dtype=np.float32))
        return Step([(pixels, torch.from_numpy(noise), t, 2 * step >= self.steps)])
