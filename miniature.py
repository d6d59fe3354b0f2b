"""The toy world as a measure: GenEval and questions in miniature, and a report that repeats the paper's tables and figures.

Scores come from `shapes.score`, which looks at the picture without any network. Errors are standard errors, for shares the
binomial sqrt(p(1-p)/n). Prompts, scenes and noise are fixed by the seed.
"""

import hashlib
import json
import math
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import shapes
import train
from cheers import Cheers, CheersConfig, read_json, write_json
from data import collate, contact_sheet, draw_curves, draw_heatmaps, dummy_picture, generation, intensities, make_sample
from data import to_pixels, understanding
from parallel import digest
from sample import generate_images, generate_texts

HELD_OUT_TASKS = ("colors", "color_attr")  # the tasks that name colours
BATCH = 50


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and standard error of the values that are known; of a share this is the binomial error sqrt(p(1-p)/n)."""
    known = np.array(values)[np.isfinite(values)]
    return (float(known.mean()), float(known.std() / len(known) ** 0.5)) if len(known) else (math.nan, math.nan)


def paint_and_score(model: Cheers, prompts: list[str], seed: int, name: str, asked: list | None = None,
                    sources: list | None = None, dummies: list | None = None, **settings) -> tuple[list, list[Tensor]]:
    """One picture per prompt -> scores, by what is `asked` (the prompts when left out), and the first ten pictures."""
    scores, first = [], []
    for start in tqdm(range(0, len(prompts), BATCH), desc=name, unit="picture", unit_scale=BATCH):
        part = slice(start, start + BATCH)
        settings |= {"sources": sources and sources[part], "dummy_pixels": dummies and dummies[part]}
        pixels = generate_images(model, prompts[part], seed=seed, first=start, **settings).cpu()
        scores += map(shapes.score, pixels, (asked or prompts)[part])
        first += pixels[: max(0, 10 - start)]
    return scores, first


def answer_questions(model: Cheers, count: int, seed: int, held_out: bool = False, objects: int = 4) -> list[tuple[str, bool]]:
    """(question, answered right) for each of `count` scenes of at most so many objects."""
    side, answered = model.config.siglip.image_size, []
    for start in tqdm(range(0, count, BATCH), desc="questions", unit="batch", dynamic_ncols=True):
        rngs = [np.random.default_rng([seed, k, held_out]) for k in range(start, min(start + BATCH, count))]
        scenes = [shapes.random_scene(rng, objects, held_out) for rng in rngs]
        questions, answers = zip(*(shapes.question(scene, rng) for scene, rng in zip(scenes, rngs)))
        given = generate_texts(model, questions, [[shapes.draw(scene, side)] for scene in scenes], max_new_tokens=24)
        answered += [(question, text == answer) for question, text, answer in zip(questions, given, answers)]
    return answered


def evaluate_shapes(model: Cheers, out: Path, limit: int, seed: int) -> list[dict]:
    """Rows {"name", "value", "error", "count", "prompts"}: the six tasks, overall, held-out, questions, outline error.
    OUT/samples.png shows ten pictures of each task, a row per task."""
    rows, outlines, pictures = [], [], []

    def row(name: str, results: list[float], prompts: int | None = None) -> None:
        (value, error), n = mean_and_error(results), int(np.isfinite(results).sum())
        rows.append({"name": name, "value": value, "error": error, "count": n, "prompts": prompts or n})

    for held_out, tasks in ((False, shapes.TASKS), (True, HELD_OUT_TASKS)):
        for i, task in enumerate(tasks):
            name = task + " (held out)" * held_out
            prompts = shapes.task_prompts(task, limit, np.random.default_rng([seed, i, held_out]), held_out)
            scores, first = paint_and_score(model, prompts, seed, name)
            pictures += [] if held_out else first
            row(name, [score.correct for score in scores], len(set(prompts)))
            outlines += [score.outline_error for score in scores]
        parts, name = rows[-len(tasks) :], "held out, overall" if held_out else "overall"
        values, errors, *counts = ([part[key] for part in parts] for key in ("value", "error", "count", "prompts"))
        mean, error = float(np.mean(values)), float(np.linalg.norm(errors)) / len(parts)  # as in GenEval, the mean of the tasks
        rows.append({"name": name, "value": mean, "error": error, "count": sum(counts[0]), "prompts": sum(counts[1])})
    contact_sheet(torch.stack(pictures), min(10, limit)).save(out / "samples.png")
    row("questions", [right for _, right in answer_questions(model, 10 * limit, seed)])
    row("questions on held-out pictures", [right for _, right in answer_questions(model, 2 * limit, seed, held_out=True)])
    row("outline error", outlines)
    return rows


def table(rows: list[dict], last: str = "prompts", digits: int = 3) -> str:
    """Markdown; the last column shows "prompts" or "paper", the paper's numbers."""
    lines = [f"| | score | ± | n | {'distinct prompts' if last == 'prompts' else last} |", "|---|---|---|---|---|"]
    for r in rows:
        value, error = ("–" if r[key] is None else f"{r[key]:.{digits}f}" for key in ("value", "error"))
        lines.append(f"| {r['name']} | {value} | {error} | {r['count']} | {'–' if r[last] is None else r[last]} |")
    return "\n".join(lines)


# ---- the paper in miniature ------------------------------------------------------------------------------------
# Small models that differ in one thing each, trained by train.py on the same samples in the same order from the same start.

class WithoutDetail(Cheers):
    """Table 5: no high-frequency injection; the gate gets nothing to let through."""

    def tokenize_image(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        tokens, details = super().tokenize_image(latents)
        return tokens, torch.zeros_like(details)


class WithoutPixels(Cheers):
    """Table 6: the semantic encoder reads the latents, a position each, instead of pixels decoded from them."""

    def __init__(self, config: CheersConfig):
        super().__init__(config)
        self.siglip.embeddings.patch_embedding = nn.Conv2d(config.vae.latent_channels, config.siglip.hidden_size, 1)

    def tokenize_image(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        semantics, details = self.siglip(latents.to(self.device, self.dtype))      # (B, n, V) each
        return self.projector(semantics, (latents.shape[2] // 2, latents.shape[3] // 2)), details


OBJECTS, BATCH_OF_KIND = 1, 8  # scenes of one object; samples per step of each kind
# name: (class, the kinds of samples it learns from)
VARIANTS = {
    "joint": (Cheers, ("understanding", "generation")),
    "joint, no detail": (WithoutDetail, ("understanding", "generation")),
    "understanding only": (Cheers, ("understanding",)),
    "understanding only, no pixels": (WithoutPixels, ("understanding",)),
}


@dataclass
class Study:
    """One report: on the trained checkpoint `model`, and on variants that are trained for `steps` steps each."""

    model: Cheers
    out: Path
    limit: int      # pictures per task; ten times as many questions
    seed: int
    steps: int
    dtype: str      # of the matrix products in training
    log: Path       # of the checkpoint's training, for Figure 4
    seconds: dict[Path, float] = field(default_factory=dict)  # that each row of the report took, when it was made

    @property
    def recipe(self) -> list:
        """All that the variants depend on, beside the seed."""
        model = self.model
        sizes = [model.config.to_json(), model.tokenizer.backend.to_str(), BATCH_OF_KIND, OBJECTS]
        return [fingerprint(model, "vae."), *sizes, asdict(train.TOY), self.steps, self.dtype]

    def folder(self, name: str) -> Path:
        return self.out / "variants" / f"{re.sub(', | ', '-', name)}-{digest([self.recipe, self.seed])[:10]}"

    def cached(self, name: str, key: object, make: Callable[[], object]) -> object:
        """What `make` gives, kept in OUT/rows under its name and all that it depends on, so that a report goes on."""
        path = self.out / "rows" / f"{re.sub(', | ', '-', name)}-{digest([key, self.limit, self.seed])[:10]}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            began = time.monotonic()
            value = make()
            write_json(path, {"name": name, "value": value, "seconds": time.monotonic() - began})
        row = read_json(path)
        self.seconds[path] = row["seconds"]
        return row["value"]


def fingerprint(model: Cheers, prefix: str = "") -> str:
    """Changes when a weight whose name begins so does."""
    weights = (tensor.float().cpu().numpy().tobytes() for name, tensor in model.state_dict().items() if name.startswith(prefix))
    return hashlib.sha256(b"".join(weights)).hexdigest()[:10]


def write_world(folder: Path, count: int, seed: int, side: int) -> None:
    """FOLDER/understanding.jsonl and generation.jsonl, `count` samples each of scenes with one object, for train.py."""
    for index, make in enumerate((understanding, generation)):
        lines, pictures = [], folder / make.__name__
        pictures.mkdir(parents=True, exist_ok=True)
        for k in tqdm(range(count), desc=f"{make.__name__} samples", unit="sample", dynamic_ncols=True):
            turns, (picture,) = make(np.random.default_rng([seed, index, k]), OBJECTS, side)
            picture.save(pictures / f"{k}.png")
            lines.append(json.dumps({"id": k, "image": f"{make.__name__}/{k}.png", "conversations": turns}) + "\n")
        (unfinished := folder / f".{make.__name__}.partial").write_text("".join(lines))
        unfinished.rename(folder / f"{make.__name__}.jsonl")


def train_variant(study: Study, name: str) -> None:
    """Trains with train.py from random weights and the checkpoint's VAE -> its folder; goes on where it was stopped."""
    kind, sources = VARIANTS[name]
    folder, count = study.folder(name), BATCH_OF_KIND * study.steps
    world = study.out / f"world-{study.seed}-{count}"
    if not all((world / f"{source}.jsonl").exists() for source in sources):
        write_world(world, count, study.seed + 1, study.model.config.siglip.image_size)
    torch.manual_seed(study.seed)
    fresh = kind(study.model.config)
    torch.manual_seed(study.seed)  # again: a kind may have drawn more or less
    fresh.initialise()
    fresh.vae.load_state_dict(study.model.vae.state_dict())
    fresh.pixel_decoder.load_state_dict(study.model.vae.state_dict(), strict=False)
    fresh.tokenizer, fresh.generation = study.model.tokenizer, study.model.generation
    fresh.save_pretrained(folder / "start")
    files = [f"{world / source}.jsonl:1" for source in sources]
    numbers = {"batch": BATCH_OF_KIND * len(sources), "steps": study.steps, "seed": study.seed, "dtype": study.dtype}
    options = [text for option, value in numbers.items() for text in (f"--{option}", str(value))]
    print(f"training: {name}", file=sys.stderr)
    train.main(["--init", str(folder / "start"), "--data", *files, "--out", str(folder), *options], kind)


def open_variant(study: Study, name: str) -> Cheers:
    return VARIANTS[name][0].from_pretrained(study.folder(name) / "model", study.model.device, torch.float32)


def velocity_errors(model: Cheers, count: int, seed: int) -> list[float]:
    """L_FM of each of `count` unseen pictures, t uniform in (0, 1); the same pictures, noise and times for every model."""
    side, samples, errors = model.config.siglip.image_size, [], []
    for k in range(count):
        rng = np.random.default_rng([seed, k, 2])
        samples.append(make_sample(*generation(rng, OBJECTS, side), model.tokenizer, model.config, rng))
    for start in range(0, count, BATCH):
        with torch.no_grad():
            errors += model.loss(collate(samples[start : start + BATCH], model.config)).errors.tolist()
    return errors


def paint_measures(study: Study, model: Cheers) -> dict[str, list[float]]:
    """Per picture: right or wrong by task, outline error (nan where nothing was found), L_FM."""
    measures, outlines = {}, []
    for i, (task, held_out) in enumerate((("single_object", False), ("colors", False), ("colors", True))):
        prompts = shapes.task_prompts(task, study.limit, np.random.default_rng([study.seed, i, held_out]), held_out)
        scores, _ = paint_and_score(model, prompts, study.seed, task)
        measures[task + " (held out)" * held_out] = [float(score.correct) for score in scores]
        outlines += [score.outline_error for score in scores]
    return measures | {"outline error": outlines, "L_FM": velocity_errors(model, 5 * study.limit, study.seed)}


QUESTIONS = {"How many": "number", "What color is the background": "background", "What color": "color",
             "What shape": "shape", "Describe": "description", "Is there": "presence"}


def question_kind(question: str) -> str:
    return next((kind for start, kind in QUESTIONS.items() if question.startswith(start)), "place")


def by_kind(answers: list[tuple[str, bool]]) -> dict[str, list[float]]:
    """(question, right) pairs -> right or wrong by kind of question."""
    kinds = {}
    for question, right in sorted(answers, key=lambda answer: question_kind(answer[0])):  # stable: the order in a kind stays
        kinds.setdefault(question_kind(question), []).append(float(right))
    return kinds


EDITS = {"recolour": "Make", "replace": "Replace", "background": "Change"}


def edit_measures(study: Study, model: Cheers, sheet: Path) -> dict[str, list[float]]:
    """Table 7: is the edited picture exactly what was asked for? SHEET: two rows for each kind, sources above results."""
    side, measures, rows = model.config.siglip.image_size, {}, []
    for index, kind in enumerate((*EDITS, "two pictures")):
        rng = np.random.default_rng([study.seed, 7, index])
        requests, sources, wanted = [], [], []
        while len(requests) < study.limit:
            scene = shapes.random_scene(rng, OBJECTS)
            if kind == "two pictures":
                other = shapes.random_scene(rng, OBJECTS)
                groups = scene.groups + other.groups
                if groups[0] == groups[1]:
                    continue
                text = f"Place the {groups[0].noun} from Figure 1 and the {groups[1].noun} from Figure 2 into one image."
                scenes, result = [scene, other], shapes.Specification(groups)
            else:
                text, edited = shapes.edit(scene, rng)
                if not text.startswith(EDITS[kind]):
                    continue
                scenes, result = [scene], shapes.Specification(edited.groups, None, edited.background)
            requests.append(text)
            sources.append([shapes.draw(s, side) for s in scenes])
            wanted.append(result)
        scores, painted = paint_and_score(model, requests, study.seed, kind, wanted, sources)
        measures[kind] = [float(score.correct) for score in scores]
        rows += [to_pixels(pictures[0]) for pictures in sources[:8]] + painted[:8]
    contact_sheet(torch.stack(rows), min(8, study.limit)).save(sheet)
    return measures


EVALUATIONS, REFERENCE = (5, 7, 10, 14, 20, 28, 40, 56, 80), 1000
SETTINGS = [{"steps": n} for n in (5, 10, 20, 40, 80)] + [{"guidance": s} for s in (1.0, 2.0, 3.0, 5.0, 9.5)]
SETTINGS += [{"shift": a} for a in (0.25, 0.5, 1.0, 2.0)] + [{"grid": "released"}, {"grid": "released", "dummy": True}]
SETTINGS += [{"solver": "adams", "steps": n} for n in (5, 10, 20, 40)]
SETTINGS += [{"interval": pair} for pair in ((0.0, 0.5), (0.0, 0.75), (0.25, 1.0))]


def sampling_measures(study: Study, settings: dict) -> list[float]:
    """Right or wrong for each picture, limit/5 of each of the six tasks, painted with these settings."""
    settings = dict(settings)
    dummy, count = settings.pop("dummy", False), max(1, study.limit // 5)
    prompts = sum((shapes.task_prompts(task, count, np.random.default_rng([study.seed, 3])) for task in shapes.TASKS), [])
    dummies = [dummy_picture(study.seed, k) for k in range(len(prompts))] if dummy else None
    scores, _ = paint_and_score(study.model, prompts, study.seed, "sampling", dummies=dummies, **settings)
    return [float(score.correct) for score in scores]


def solver_errors(study: Study) -> dict[str, list[tuple[int, float]]]:
    """(evaluations, log10 of the root mean square error of the latents against 1,000 Euler steps) of each solver."""
    rng, seen, errors = np.random.default_rng([study.seed, 4]), [], {}
    prompts = [prompt for task in shapes.TASKS for prompt in shapes.task_prompts(task, 2, rng)]

    def latents(**settings) -> Tensor:
        generate_images(study.model, prompts, seed=study.seed, watch=seen.append, **settings)
        return seen[-1].result

    exact = latents(steps=REFERENCE)
    for solver in ("euler", "adams"):
        results = ((n, latents(steps=n, solver=solver)) for n in EVALUATIONS)
        errors[solver] = [(n, float((z - exact).square().mean().sqrt().log10())) for n, z in results]
    return errors


def gate_measures(study: Study, sheet: Path) -> dict[str, list]:
    """Figure 5: times t of the steps, and for each picture the gate's intensity at them; SHEET: one picture's maps."""
    seen = []
    rng = np.random.default_rng([study.seed, 5])
    texts = sum((shapes.task_prompts(task, 6, rng) for task in shapes.TASKS), [])[:32]
    generate_images(study.model, texts, seed=study.seed, watch=lambda step: seen.append((step.t, step.gate.cpu())))
    times, gates = zip(*seen)
    draw_heatmaps(list(times), [gate[0] for gate in gates]).save(sheet)
    return {"t": list(times), "intensity": [intensities([gate[k] for gate in gates]) for k in range(len(texts))]}


# -- the report: every sentence that compares is computed

def markdown(rows: dict[str, dict[str, list[float]]]) -> str:
    """A table with a line per model and a column per measure, mean ± error."""
    names = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for label, measures in rows.items():
        known = (measures.get(name) for name in names)
        cells = ("{:.3f} ± {:.3f}".format(*mean_and_error(values)) if values else "–" for values in known)
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(claim: str, expected: set[int], ours: list[float], theirs: list[float]) -> str:
    """Has the difference ours - theirs, item by item, one of the expected signs (0: none, it is within two errors)?"""
    difference, error = mean_and_error(np.subtract(ours, theirs).tolist())
    if not math.isfinite(difference):
        return f"- {claim}: nothing to compare."
    seen = 0 if abs(difference) <= 2 * error else int(np.sign(difference))
    found = ("no difference", "higher", "lower")[seen]
    agrees = "Agrees" if seen in expected else "Does not agree"
    return f"- {claim}: {found} ({difference:+.3f} ± {error:.3f}). **{agrees}.**"


def machine() -> str:
    cpus = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpus.read_text()) if cpus.exists() else []
    gpus = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return ", ".join([*names[:1], *gpus, f"{torch.get_num_threads()} threads", f"torch {torch.__version__}"])


def paper(study: Study) -> Path:
    """Trains what is missing, measures, and writes OUT/report.md with its figures. Returns its path."""
    model, out, shipped, recipe = study.model, study.out, fingerprint(study.model), study.recipe
    scores = study.cached("shapes", shipped, lambda: evaluate_shapes(model, out, study.limit, study.seed))
    asked = study.cached("questions", shipped, lambda: by_kind(answer_questions(model, 10 * study.limit, study.seed)))
    gate = study.cached("gate", shipped, lambda: gate_measures(study, out / "figure-5a.png"))
    painting, answering, sampled = {}, {}, {}
    for settings in SETTINGS:
        label = ", ".join(f"{name} {value}" for name, value in settings.items())
        key = [shipped, model.generation | settings]  # a setting that is the checkpoint's own is painted once
        sampled[label] = study.cached("sampling", key, partial(sampling_measures, study, settings))
    for name, (_, sources) in VARIANTS.items():
        study.cached(f"{name}, training", recipe, partial(train_variant, study, name))
        variant = open_variant(study, name)
        ask = partial(answer_questions, variant, 10 * study.limit, study.seed, objects=OBJECTS)
        answering[name] = study.cached(f"{name}, questions", recipe, lambda: by_kind(ask()))
        if "generation" in sources:
            painting[name] = study.cached(f"{name}, pictures", recipe, partial(paint_measures, study, variant))
    joint, blurred, reader, blind = VARIANTS
    edits = {label: study.cached(f"{label}, edits", [shipped, recipe], partial(edit_measures, study, editor, out / picture))
             for label, editor, picture in (("the checkpoint", model, "table-7-checkpoint.png"),
                                            ("never saw an edit", open_variant(study, joint), "table-7-joint.png"))}
    log = [json.loads(line) for line in open(study.log)] if study.log.exists() else []
    learnt = {task: [(line["step"], line[task]) for line in log if task in line] for task in ("overall", *shapes.TASKS)}
    if learnt["overall"]:
        draw_curves(learnt, "score over training steps").save(out / "figure-4.png")
    intensity = np.array(gate["intensity"])                                        # (pictures, steps)
    curve = list(zip(gate["t"], intensity.mean(0).tolist()))
    draw_curves({"gate": curve}, "mean |G|, normalised to [0, 1], over t").save(out / "figure-5b.png")
    errors = study.cached("solvers", shipped, partial(solver_errors, study))
    draw_curves(errors, "log10 of the latents' error against 1,000 steps, over evaluations").save(out / "solvers.png")
    for kind in ("steps", "guidance", "shift"):
        points = [(float(label.split()[1]), np.mean(right)) for label, right in sampled.items() if label.startswith(kind)]
        draw_curves({kind: points}, f"score over {kind}").save(out / f"sampling-{kind}.png")

    every = {name: sum(kinds.values(), []) for name, kinds in answering.items()}
    detail = {name: kinds.get("shape", []) + kinds.get("description", []) for name, kinds in answering.items()}
    coarse = {name: kinds.get("color", []) + kinds.get("background", []) for name, kinds in answering.items()}
    nothing = dict.fromkeys(painting[joint], [])
    table_5 = {name: {"questions": every[name]} | painting.get(name, nothing) for name in (reader, blurred, joint)}
    fine_and_coarse = "fine: shape, description", "coarse: color, background"
    table_6 = {name: dict(zip(fine_and_coarse, (detail[name], coarse[name]))) for name in (blind, reader)}
    right = {name: measures["single_object"] + measures["colors"] for name, measures in painting.items()}
    outline = {name: measures["outline error"] for name, measures in painting.items()}
    t = np.array(gate["t"])
    first, middle, last = (intensity[:, (low <= t) & (t < low + 1 / 3)].mean(1).tolist() for low in (0, 1 / 3, 2 / 3))
    text = f"""# The paper in miniature

Made by `python evaluate.py paper --steps {study.steps} --limit {study.limit} --seed {study.seed} --dtype {study.dtype}`
in {sum(study.seconds.values()) / 60:.0f} minutes on {machine()}.
± is one standard error. Differences are taken item by item; one within two of its errors is called none.

The variants ({"; ".join(VARIANTS)}) are trained for {study.steps} steps
with on average {BATCH_OF_KIND} samples of each kind that they learn from, on scenes of one object, at times that lean to the
beginning (train.py, TOY): the same samples in the same order, the same seed, start and VAE. They differ in one thing each.
They are tiny, start from random weights where the paper's start from SigLIP2 and Qwen2.5, and see small pictures: what agrees
here need not hold there for the same reason, and what does not agree here says little about the paper.

## Table 3: GenEval in miniature, by the checkpoint

{table(scores)}

## Table 2: questions by type, by the checkpoint

{markdown({"the checkpoint": asked})}

## Table 5: does painting hurt answering, and is high-frequency injection needed?

{markdown(table_5)}

{verdict("Answers after joint training against answers alone", {0, 1}, every[joint], every[reader])}
{verdict("Answers with detail against answers without", {0}, every[joint], every[blurred])}
{verdict("L_FM with detail against L_FM without", {-1}, painting[joint]["L_FM"], painting[blurred]["L_FM"])}
{verdict("Right pictures with detail against without", {1}, right[joint], right[blurred])}
{verdict("Outline error with detail against without", {-1}, outline[joint], outline[blurred])}

## Table 6: pixels before the semantic encoder

{markdown(table_6)}

{verdict("Fine detail, with pixels against without", {1}, detail[reader], detail[blind])}
{verdict("Coarse properties, with pixels against without", {1}, coarse[reader], coarse[blind])}

## Figure 4: score along training

{"![scores over steps](figure-4.png)" if learnt["overall"] else "The checkpoint has no log with scores."}

From the checkpoint's log: {len(shapes.TASKS)} tasks, 8 pictures each, so one point of one task is uncertain by up to 0.18.

## Figure 5: the gate

![heat maps](figure-5a.png) ![intensity](figure-5b.png)

{verdict("The gate's intensity in the last third of t against the middle", {1}, last, middle)}

In the first third it is {np.mean(first):.2f}, in the middle {np.mean(middle):.2f}, in the last {np.mean(last):.2f}. About the
middle the paper says two things: it "slightly decreases" (Figure 5a), and goes from "relatively low" to "relatively moderate" (5b).

## Table 7: editing, and two pictures into one

{markdown(edits)}

The checkpoint learnt from edits and from scenes of several objects (if it is `weights/tiny`); the other is the joint
variant, which has never seen an edit nor more than one object. First sources above, results below, in the table's order:

![edits by the checkpoint](table-7-checkpoint.png) ![edits by a model that never saw one](table-7-joint.png)

## Sampling

{markdown({name: {"score over all six tasks": right} for name, right in sampled.items()})}

![steps](sampling-steps.png) ![guidance](sampling-guidance.png) ![shift](sampling-shift.png)

![error of the solvers](solvers.png)

| evaluations | {" | ".join(f"error of {solver}" for solver in errors)} |
|---|---|---|
{chr(10).join(f"| {n} | {10 ** a:.4f} | {10 ** b:.4f} |" for (n, a), (_, b) in zip(*errors.values()))}
"""
    (out / "report.md").write_text(text)
    return out / "report.md"
