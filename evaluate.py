"""How good is a model? The command line of miniature.py (the toy world, and the paper's tables and figures in it).

    python evaluate.py shapes --model weights/tiny --out outputs/evaluation
    python evaluate.py paper --model weights/tiny --out outputs/paper

geneval, geneval-score, dpg, understanding and easy-vqa are the public benchmarks, of benchmarks.py and questions.py.
"""

import argparse
import re
import sys
from pathlib import Path

import torch.distributed as dist

import benchmarks
import sample
from benchmarks import PUBLISHED, claim, identity
from cheers import Cheers, write_json
from data import make_folder, open_picture
from miniature import Study, evaluate_shapes, paper, table
from parallel import RANK, WORLD, digest, shared, start_process
from questions import BENCHMARKS, EASY, Questions, answer, ask, easy_rows, first, prepare_easy_vqa, summarize


def open_model(args: argparse.Namespace) -> Cheers:
    return sample.open_model(args.model, getattr(args, "device", None) or args.best_device, getattr(args, "model_dtype", None))


def run_shapes(args: argparse.Namespace) -> None:
    rows = evaluate_shapes(open_model(args), args.out, args.limit, args.seed)
    write_json(args.out / "shapes.json", {"model": args.model, "seed": args.seed, "rows": rows})
    print(table(rows))


def run_paper(args: argparse.Namespace) -> None:
    log = Path(args.model) / "metrics.jsonl"
    print(paper(Study(open_model(args), args.out, args.limit, args.seed, args.steps, args.dtype, log)))


def run_painting(args: argparse.Namespace) -> None:
    """GenEval and DPG-Bench: pictures for their public scorers."""
    geneval = args.command == "geneval"
    prompts = benchmarks.read_geneval(args.metadata) if geneval else benchmarks.read_dpg(args.prompts)
    model = open_model(args)
    settings = sample.complete(model, steps=args.steps, guidance=args.guidance, shift=args.shift)
    belongs = {"model": identity(model, args.model), "seed": args.seed, "grid": "exact" if args.exact else "released"}
    belongs |= settings | {"images per prompt": args.images_per_prompt, "prompts": digest(prompts)}
    claim(args.out / "settings.json", belongs, "*/samples/*.png" if geneval else "*.jpg")
    arrange = benchmarks.geneval_sheets if geneval else benchmarks.dpg_sheets
    sheets = arrange(prompts, args.out, args.images_per_prompt, args.limit)
    benchmarks.paint(model, sheets, args.batch, args.seed, not args.exact, **settings)


def run_geneval_score(args: argparse.Namespace) -> None:
    rows = benchmarks.geneval_score(benchmarks.read_geneval(args.metadata), args.detections)
    print(table(rows, "paper"))


def run_understanding(args: argparse.Namespace) -> None:
    if (name := args.benchmark or args.tsv.stem) not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {name}; choose --benchmark from {', '.join(BENCHMARKS)}")
    file = Questions(args.tsv)
    texts = {question["index"]: ask(question, BENCHMARKS[name]) for question in file.rows}
    try:
        questions = first(BENCHMARKS[name], file.rows, args.limit)
        summarize(BENCHMARKS[name], questions, [""] * len(questions))  # what scoring lacks is said before the work
    except (KeyError, ValueError, re.error) as error:
        raise ValueError(f"{args.tsv} cannot be scored as {name} ({type(error).__name__}: {error})") from None
    model = open_model(args)
    belongs = {"model": identity(model, args.model), "questions": digest(texts)}
    claim(args.out / f"{name}-settings.json", belongs, f"{name}.jsonl")
    prompt = lambda question: texts[question["index"]]
    predictions = answer(model, args.out, name, questions, prompt, file.pictures, args.batch, max_new_tokens=512)
    report(args, name, summarize(BENCHMARKS[name], questions, predictions))


def run_easy_vqa(args: argparse.Namespace) -> None:
    questions = shared(lambda: prepare_easy_vqa(args.data, args.out))[: args.limit]
    if args.prepare:
        return print(args.out / "train.jsonl")
    model = open_model(args)
    claim(args.out / f"{EASY}-settings.json", {"model": identity(model, args.model)}, f"{EASY}.jsonl")
    see = lambda question: [open_picture(args.out / EASY / "test/images" / question["image"])]
    prompt = lambda question: question["question"]
    predictions = answer(model, args.out, EASY, questions, prompt, see, args.batch, max_new_tokens=8)  # one word
    report(args, EASY, easy_rows(questions, predictions))


def report(args: argparse.Namespace, name: str, rows: list[dict]) -> None:
    if RANK == 0:
        write_json(args.out / f"{name}.json", {"model": args.model, "rows": rows})
        print(table(rows, "paper", digits=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, out: str, text: str):
        add = commands.add_parser(name, help=text, description=text, allow_abbrev=False).add_argument
        add("--model", default=str(Path(__file__).parent / "weights/tiny"), metavar="NAME|FOLDER")
        add("--out", type=Path, default=Path(out), metavar="DIR", help=f"{out} when left out")
        if run in (run_shapes, run_paper, run_painting):  # answers are greedy
            add("--seed", type=int, default=0)
        commands.choices[name].set_defaults(run=run)
        return add

    for name, run, out, text in (("shapes", run_shapes, "outputs/evaluation", "GenEval and questions in the toy world"),
                                 ("paper", run_paper, "outputs/paper", "the paper's tables and figures in miniature")):
        add = command(name, run, out, text)
        add("--limit", type=int, default=100, help="pictures per task; ten times as many questions")
    add("--steps", type=int, default=3_000, help="of the training of each small model")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of its matrix products")
    for name, settings in PUBLISHED.items():
        about = f"pictures for {name}'s public scorer, with the settings of the published score"
        add = command(name, run_painting, f"outputs/{name}", about)
        if name == "geneval":
            add("--metadata", type=Path, required=True, metavar="FILE", help="evaluation_metadata.jsonl")
        else:
            add("--prompts", type=Path, required=True, metavar="FOLDER", help="a file NAME.txt for each prompt")
        for option, value in settings.items():
            add(f"--{option}", type=type(value), default=value, help=f"{value} in the published score")
        add("--exact", action="store_true", help="our time grid and no dummy picture; by default they are the released "
            "code's (sample.py --released), which made the published scores")
        add("--images-per-prompt", type=int, default=4, metavar="N")
    for name, run, text in (("understanding", run_understanding, "answers and scores of " + ", ".join(BENCHMARKS)),
                            (EASY, run_easy_vqa, "OUT/train.jsonl for train.py, and scores of easy-VQA's test questions")):
        add = command(name, run, f"outputs/{name}", text)
        if name == EASY:
            add("--data", type=Path, required=True, metavar="FILE|FOLDER", help="PyPI's easy-vqa, as downloaded or unpacked")
            add("--prepare", action="store_true", help="no more than OUT/train.jsonl and its pictures")
        else:
            add("--tsv", type=Path, required=True, metavar="FILE", help="as VLMEvalKit has it")
            add("--benchmark", metavar="NAME", help="the file's name when left out")
    for name, unit in (*((name, "prompt") for name in PUBLISHED), ("understanding", "question"), (EASY, "question")):
        add = commands.choices[name].add_argument
        add("--limit", type=int, metavar="N", help=f"only the first N {unit}s")
        add("--batch", type=int, default=8, metavar="N", help=f"{'picture' if unit == 'prompt' else unit}s at once")
        add("--device", help="cpu, cuda, mps; the best there is by default")
        add("--dtype", dest="model_dtype", choices=("float32", "bfloat16"), help="float32 on CPUs, else as stored")
    score = commands.add_parser("geneval-score", help="GenEval's scores from detections", allow_abbrev=False,
                                description=benchmarks.geneval_score.__doc__, formatter_class=parser.formatter_class)
    score.add_argument("--metadata", type=Path, required=True, metavar="FILE", help="evaluation_metadata.jsonl")
    score.add_argument("--detections", type=Path, required=True, metavar="FILE")
    score.set_defaults(run=run_geneval_score)
    args = parser.parse_args()
    for option in ("limit", "steps", "batch", "images_per_prompt"):
        if (value := getattr(args, option, None)) is not None and value < 1:
            parser.error(f"--{option.replace('_', '-')} must be at least 1")
    if getattr(args, "seed", 0) < 0:
        parser.error("--seed must not be negative")
    if args.run in (run_shapes, run_paper):  # the benchmarks look at their input first
        if WORLD > 1:
            parser.error(f"{args.command} runs in one process; start it without torchrun")
        make_folder(args.out, args.out)
    args.best_device = start_process()
    args.run(args)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"evaluate.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\nevaluate.py: interrupted; the same command goes on")
