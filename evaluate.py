"""How good is a model? The command line of miniature.py (the toy world, and the paper's tables and figures in it).

    python evaluate.py shapes --model weights/tiny --out outputs/evaluation
    python evaluate.py paper --model weights/tiny --out outputs/paper
"""

import argparse
import sys
from pathlib import Path

import torch

from cheers import Cheers, best_device, write_json
from miniature import Study, evaluate_shapes, paper, table


def open_model(args: argparse.Namespace) -> Cheers:
    device = best_device()
    return Cheers.from_pretrained(args.model, device, torch.float32 if device.type == "cpu" else None)


def run_shapes(args: argparse.Namespace) -> None:
    rows = evaluate_shapes(open_model(args), args.out, args.limit, args.seed)
    write_json(args.out / "shapes.json", {"model": args.model, "seed": args.seed, "rows": rows})
    print(table(rows))


def run_paper(args: argparse.Namespace) -> None:
    log = Path(args.model) / "metrics.jsonl"
    print(paper(Study(open_model(args), args.out, args.limit, args.seed, args.steps, args.dtype, log)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, out: str, text: str):
        add = commands.add_parser(name, help=text, description=text, allow_abbrev=False).add_argument
        add("--model", default=str(Path(__file__).parent / "weights/tiny"), metavar="NAME|FOLDER")
        add("--out", type=Path, default=Path(out), metavar="DIR", help=f"{out} when left out")
        add("--seed", type=int, default=0)
        commands.choices[name].set_defaults(run=run)
        return add

    for name, run, out, text in (("shapes", run_shapes, "outputs/evaluation", "GenEval and questions in the toy world"),
                                 ("paper", run_paper, "outputs/paper", "the paper's tables and figures in miniature")):
        add = command(name, run, out, text)
        add("--limit", type=int, default=100, help="pictures per task; ten times as many questions")
    add("--steps", type=int, default=3_000, help="of the training of each small model")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of its matrix products")
    args = parser.parse_args()
    for option in ("limit", "steps"):
        if getattr(args, option, 1) < 1:
            parser.error(f"--{option} must be at least 1")
    if args.seed < 0:
        parser.error("--seed must not be negative")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write {args.out} ({error.strerror}); choose another --out") from None
    args.run(args)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"evaluate.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\nevaluate.py: interrupted; the same command goes on")
