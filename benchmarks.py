"""The public benchmarks of painting, GenEval (arXiv 2310.11513) and DPG-Bench (arXiv 2403.05135).

Pictures lie as the public scorers read them (github.com/djghosh13/geneval, github.com/TencentQQGYLab/ELLA); GenEval's rules
are here too, for detections from anywhere. A run that was killed goes on: finished files are renamed into place and stay.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cheers import Cheers, read_json, write_json
from data import contact_sheet, dummy_picture
from parallel import RANK, WORLD, digest, shared
from sample import generate_images, seeded_noise

PUBLISHED = {  # the settings of the published scores, which used the release's time grid and dummy picture, too
    "geneval": {"steps": 80, "guidance": 9.5, "shift": 1.0},
    "dpg": {"steps": 250, "guidance": 9.5, "shift": 0.5},
}
GENEVAL = {"single_object": 0.98, "two_object": 0.92, "counting": 0.65, "colors": 0.86, "position": 0.63, "color_attr": 0.65}


# ---- results and what they belong to ---------------------------------------------------------------------------

def row(name: str, scores: list[float], paper: float | None = None, scale: float = 1) -> dict:
    """Mean and standard error of n scores; for scores of 0 and 1 that is the binomial error, sqrt(p(1-p)/n)."""
    mean, error = scale * float(np.mean(scores)), scale * float(np.std(scores)) / len(scores) ** 0.5
    return {"name": name, "value": mean, "error": error, "count": len(scores), "paper": paper}


def json_lines(path: Path, *keys: str, killed: bool = False) -> list[dict]:
    """The objects of a JSON-lines file, all with these keys. killed: a last line without its end is dropped.

    Raises FileNotFoundError, or ValueError naming the damaged line."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise FileNotFoundError(f"cannot open {path} ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file ({error})") from None
    objects = []
    for number, line in enumerate((text.rpartition("\n")[0] if killed else text).split("\n"), 1):
        if line.strip():
            try:
                objects.append(json.loads(line))
                missing = [key for key in keys if key not in objects[-1]]
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number} is not JSON ({error})") from None
            if missing or not isinstance(objects[-1], dict):
                raise ValueError(f"{path}, line {number} is not a JSON object with {', '.join(keys)}")
    return objects


def identity(model: Cheers, name: str) -> str:
    """A model's name and a hash of some values of every weight: a folder may be trained further, or moved."""
    some = [tensor.flatten()[:64].float().cpu().tolist() for tensor in model.state_dict().values()]
    return f"{Path(name).name}, {str(next(model.parameters()).dtype)[6:]}, {digest(some)[:12]}"


def claim(path: Path, settings: dict, results: str) -> None:
    """Makes a folder of results (a glob pattern) that of these settings, which are kept in `path`.

    Raises ValueError when it holds results of other settings, OSError when it cannot be written."""

    def check() -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            found = read_json(path) if path.exists() else settings
            if other := [name for name in settings if found.get(name) != settings[name]]:
                raise ValueError(f"{path.parent} holds results of another {', '.join(other)}; choose another --out")
            if not path.exists() and any(path.parent.glob(results)):
                raise ValueError(f"{path.parent} holds results of unknown settings; choose another --out")
            write_json(path, settings)
        except OSError as error:
            raise OSError(f"cannot write to {path.parent} ({error.strerror}); choose another --out") from None

    shared(check)


# ---- GenEval and DPG-Bench: pictures ---------------------------------------------------------------------------

@dataclass
class Sheet:
    """A file to paint: some pictures of one prompt, in rows."""

    path: Path
    prompt: str
    index: int         # of the prompt
    pictures: range    # which of the prompt's pictures, left to right, top to bottom


def read_geneval(path: Path) -> list[dict]:
    """The prompts of evaluation_metadata.jsonl, {"tag", "include", "exclude", "prompt"}."""
    if not (prompts := json_lines(path, "tag", "include", "prompt")):
        raise ValueError(f"{path} holds no prompts")
    return prompts


def geneval_sheets(metadata: list[dict], out: Path, count: int, limit: int | None) -> list[Sheet]:
    """OUT/00000/samples/00000.png …; also writes OUT/00000/metadata.jsonl …, the prompt's own line."""
    metadata = metadata[:limit]
    for i in range(RANK, len(metadata), WORLD):
        (folder := out / f"{i:05d}" / "samples").mkdir(parents=True, exist_ok=True)
        (folder.parent / "metadata.jsonl").write_text(json.dumps(metadata[i]) + "\n")
    paths = ((i, k, out / f"{i:05d}" / "samples" / f"{k:05d}.png") for i in range(len(metadata)) for k in range(count))
    return [Sheet(path, metadata[i]["prompt"], i, range(k, k + 1)) for i, k, path in paths]


def dpg_sheets(prompts: dict[str, str], out: Path, count: int, limit: int | None) -> list[Sheet]:
    """OUT/STEM.jpg, all pictures of a prompt in one grid."""
    return [Sheet(out / f"{stem}.jpg", text, i, range(count)) for i, (stem, text) in enumerate([*prompts.items()][:limit])]


def read_dpg(folder: Path) -> dict[str, str]:
    """File stem -> prompt, verbatim, of each FOLDER/*.txt. Raises ValueError when there is none, or one is no text."""
    prompts = {}
    for path in sorted(folder.glob("*.txt")):
        try:
            prompts[path.stem] = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not a text file ({error})") from None
    if not prompts or not all(prompts.values()):
        empty = [f"{stem}.txt" for stem, text in prompts.items() if not text]
        raise ValueError(f"{folder} holds " + (f"an empty prompt, {empty[0]}" if empty else "no prompts, STEM.txt each"))
    return prompts


def paint(model: Cheers, sheets: list[Sheet], batch: int, seed: int, released: bool, **settings: float) -> None:
    """Paints this process's share of the files, those of prompt i in process i % WORLD, `batch` pictures at once.

    Noise and dummy picture follow from (seed, prompt, picture) alone. Rounding depends on the batch, too: one that a kill
    left unfinished is painted as a whole, so that what is missing comes out as it would have; what is there stays."""
    mine = [sheet for sheet in sheets if sheet.index % WORLD == RANK]
    side, factor = model.config.siglip.image_size, model.config.vae.factor
    shape = (model.config.vae.latent_channels, side // factor, side // factor)
    group = max(1, batch // len(sheets[0].pictures))
    title = f"painting, process {RANK + 1} of {WORLD}"
    for start in tqdm(range(0, len(mine), group), title, unit="file", unit_scale=group, disable=RANK > 0):
        some = mine[start : start + group]
        if missing := [sheet for sheet in some if not sheet.path.exists()]:
            jobs = [(sheet.prompt, (sheet.index << 20) + k) for sheet in some for k in sheet.pictures]
            painted = []
            for first in range(0, len(jobs), batch):
                prompts, numbers = zip(*jobs[first : first + batch])
                noise = torch.stack([seeded_noise(seed, number, shape) for number in numbers])
                dummies = [dummy_picture(seed, number) for number in numbers]
                grid = {"grid": "released", "dummy_pixels": dummies} if released else {}
                painted += generate_images(model, list(prompts), noise=noise, **grid, **settings).cpu()
            for sheet in some:
                pictures, painted = painted[: len(sheet.pictures)], painted[len(sheet.pictures) :]
                if sheet in missing:
                    save(pictures, sheet.path)


def save(pictures: list[Tensor], path: Path) -> None:
    """Pictures of one size as a grid, as square as it gets; written under another name, then renamed."""
    sheet = contact_sheet(torch.stack(pictures), math.ceil(len(pictures) ** 0.5), scale=1)
    partial = path.with_name(f".{path.name}.partial")
    sheet.save(partial, "PNG" if path.suffix == ".png" else "JPEG", quality=95, subsampling=0)
    os.replace(partial, path)


# ---- GenEval: scores from detections ---------------------------------------------------------------------------

def relations(box: list[float], other: list[float]) -> set[str]:
    """Where a box [x0, y0, x1, y1] lies as seen from another; y grows downwards."""
    a, b = np.reshape(box, (2, 2)), np.reshape(other, (2, 2))
    offset = a.mean(0) - b.mean(0)
    reduced = np.sign(offset) * np.maximum(np.abs(offset) - 0.1 * (np.abs(a[1] - a[0]) + np.abs(b[1] - b[0])), 0)
    x, y = reduced / max(np.linalg.norm(offset), 1e-9)
    return {name for name, far in (("left of", -x), ("right of", x), ("above", -y), ("below", y)) if far > 0.5}


def fulfils(prompt: dict, objects: list[dict]) -> bool:
    """Whether detections show what a GenEval prompt asks for. As in the public scorer, a clause about n objects looks at the
    n surest ones of a class: all must have its colour, and its relation to all those of the clause that it refers to, which
    must hold itself; `exclude` counts all that are above the threshold, which is strict."""
    found: dict[str, list[dict]] = {}
    for item in sorted(objects, key=lambda item: -item["score"]):
        of_class = found.setdefault(item["class"], [])
        if item["score"] > (0.9 if prompt["tag"] == "counting" else 0.3) and len(of_class) < 16:
            of_class.append(item)
    groups: list[list[dict] | None] = []
    for clause in prompt["include"]:
        group = found.get(clause["class"], [])[: clause["count"]]
        holds = len(group) == clause["count"]
        if "color" in clause:
            holds = holds and all(item["color"] == clause["color"] for item in group)
        if "position" in clause:
            relation, k = clause["position"]
            targets = groups[k]
            pairs = [(item["box"], target["box"]) for item in group for target in targets or []]
            holds = holds and targets is not None and all(relation in relations(*pair) for pair in pairs)
        groups.append(group if holds else None)
    too_many = (len(found.get(clause["class"], [])) >= clause["count"] for clause in prompt.get("exclude", []))
    return None not in groups and not any(too_many)


def geneval_score(metadata: list[dict], detections: Path) -> list[dict]:
    """Rows of the six tasks and overall, their mean, from a file with a JSON object per picture:

    {"index": 0, "picture": 0, "objects": [{"class": "bench", "score": 0.97, "box": [x0, y0, x1, y1], "color": "red"}, …]}

    index: the prompt's line, from 0. color: null when unknown; may be left out where no colour is asked for. Tasks without
    pictures are left out. Raises ValueError for what cannot be scored."""
    scores: dict[str, list[float]] = {}
    seen = set()
    for index, prompt in enumerate(metadata):
        try:
            fulfils(prompt, [])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"prompt {index} of the metadata is not one of GenEval's ({type(error).__name__}: {error})") from None
    for line in json_lines(detections, "index", "picture", "objects"):
        place = (line["index"], line["picture"])
        if not all(isinstance(number, int) for number in place):
            raise ValueError(f"{detections}: index and picture must be whole numbers, not {place}")
        if place in seen or line["index"] not in range(len(metadata)):
            problem = "comes twice" if place in seen else f"has no prompt; there are {len(metadata)}"
            raise ValueError(f"{detections}: picture {place[1]} of index {place[0]} {problem}")
        seen.add(place)
        prompt = metadata[line["index"]]
        try:
            scores.setdefault(prompt["tag"], []).append(fulfils(prompt, line["objects"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = f"without class, score, box of 4 numbers or a color asked for ({type(error).__name__}: {error})"
            raise ValueError(f"{detections}: picture {place[1]} of index {place[0]} has an object {problem}") from None
    if not scores:
        raise ValueError(f"{detections} holds no pictures")
    rows = [row(task, values, GENEVAL.get(task)) for task, values in scores.items()]
    error = float(np.sqrt(np.sum([r["error"] ** 2 for r in rows]))) / len(rows)
    mean, count = float(np.mean([r["value"] for r in rows])), sum(r["count"] for r in rows)
    return [*rows, {"name": "overall", "value": mean, "error": error, "count": count, "paper": 0.78}]
