"""How good is a model? The toy world's miniature of GenEval, and its questions.

    python evaluate.py shapes --model weights/tiny --out outputs/evaluation

Scores come from `shapes.score`, which looks at the picture without any network. Each row carries its binomial error,
sqrt(p(1-p)/n). Prompts, scenes and noise are fixed by the seed.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import shapes
from cheers import Cheers, best_device, write_json
from data import contact_sheet
from sample import generate_images, generate_text

HELD_OUT_TASKS = ("colors", "color_attr")  # the tasks that name colours
BATCH = 50


def paint_and_score(model: Cheers, prompts: list[str], seed: int, name: str) -> tuple[list[shapes.Score], list[torch.Tensor]]:
    """One picture per prompt -> scores, and the first ten pictures."""
    scores, first = [], []
    bar = tqdm(total=len(prompts), desc=name, unit="picture")
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        pixels = generate_images(model, batch, seed=seed, first=start).cpu()
        scores += [shapes.score(picture, prompt) for picture, prompt in zip(pixels, batch)]
        first += list(pixels[: max(0, 10 - start)])
        bar.update(len(batch))
    bar.close()
    return scores, first


def answer_questions(model: Cheers, count: int, seed: int, held_out: bool) -> list[bool]:
    side, right = model.config.siglip.image_size, []
    for k in tqdm(range(count), desc="questions", unit="question"):
        rng = np.random.default_rng([seed, k, held_out])
        scene = shapes.random_scene(rng, held_out=held_out)
        question, answer = shapes.question(scene, rng)
        right.append(generate_text(model, question, [shapes.draw(scene, side)], max_new_tokens=24) == answer)
    return right


def evaluate_shapes(model: Cheers, out: Path, limit: int, seed: int) -> list[dict]:
    """Rows {"name", "value", "error", "count", "prompts"}: the six tasks, overall, held-out, questions, outline error.
    OUT/samples.png shows ten pictures of each task, a row per task."""
    rows, outlines, pictures = [], [], []

    def row(name: str, results: list[bool], prompts: int | None = None) -> None:
        p, n = float(np.mean(results)), len(results)
        rows.append({"name": name, "value": p, "error": (p * (1 - p) / n) ** 0.5, "count": n, "prompts": prompts or n})

    everything = {False: [], True: []}
    for held_out, tasks in ((False, shapes.TASKS), (True, HELD_OUT_TASKS)):
        for i, task in enumerate(tasks):
            name = task + " (held out)" * held_out
            prompts = shapes.task_prompts(task, limit, np.random.default_rng([seed, i, held_out]), held_out)
            scores, first = paint_and_score(model, prompts, seed, name)
            pictures += [] if held_out else first
            row(name, [score.correct for score in scores], len(set(prompts)))
            everything[held_out].append(rows[-1])
            outlines += [score.outline_error for score in scores if np.isfinite(score.outline_error)]
        parts = everything[held_out]  # as in GenEval, the mean of the tasks
        rows.append({
            "name": "held out, overall" if held_out else "overall",
            "value": float(np.mean([part["value"] for part in parts])),
            "error": float(np.sqrt(np.sum([part["error"] ** 2 for part in parts])) / len(parts)),
            "count": sum(part["count"] for part in parts),
            "prompts": sum(part["prompts"] for part in parts),
        })
    contact_sheet(torch.stack(pictures), min(10, limit)).save(out / "samples.png")
    row("questions", answer_questions(model, 10 * limit, seed, False))
    row("questions on held-out pictures", answer_questions(model, 2 * limit, seed, True))
    mean, spread = float(np.mean(outlines or [np.nan])), float(np.std(outlines or [np.nan]) / max(len(outlines), 1) ** 0.5)
    rows.append({"name": "outline error", "value": mean, "error": spread, "count": len(outlines), "prompts": len(outlines)})
    return rows


def table(rows: list[dict]) -> str:
    lines = ["| | score | ± | n | distinct prompts |", "|---|---|---|---|---|"]
    return "\n".join(
        lines + [f"| {r['name']} | {r['value']:.3f} | {r['error']:.3f} | {r['count']} | {r['prompts']} |" for r in rows]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["shapes"])
    parser.add_argument("--model", default=str(Path(__file__).parent / "weights" / "tiny"))
    parser.add_argument("--out", type=Path, default=Path("outputs/evaluation"))
    parser.add_argument("--limit", type=int, default=100, help="pictures per task; ten times as many questions")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.limit < 1 or arguments.seed < 0:
        parser.error("--limit must be at least 1 and --seed not negative")
    device = best_device()
    model = Cheers.from_pretrained(arguments.model, device, torch.float32 if device.type == "cpu" else None)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = evaluate_shapes(model, arguments.out, arguments.limit, arguments.seed)
    write_json(arguments.out / "shapes.json", {"model": arguments.model, "seed": arguments.seed, "rows": rows})
    print(table(rows))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"evaluate.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\nevaluate.py: interrupted")
