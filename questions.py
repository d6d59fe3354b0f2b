"""The public benchmarks of understanding, from VLMEvalKit's TSV files (arXiv 2407.11691), and easy-VQA.

Scores follow that toolkit's rules without a judging model (github.com/open-compass/VLMEvalKit). Answers are greedy; they are
appended line by line, and a run that was killed goes on.
"""

import ast
import base64
import csv
import io
import json
import math
import os
import re
import shutil
import string
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from benchmarks import json_lines, row
from cheers import Cheers
from data import LOOK, gpt, human, open_picture
from parallel import RANK, WORLD, shared, total, write_lines
from sample import generate_texts


# ---- understanding: rules that score one answer, (prediction, row of the TSV file) -> 0 … 1 ---------------------

def options(question: dict) -> dict[str, str]:
    return {letter: question[letter] for letter in string.ascii_uppercase if question.get(letter)}


def alone(letters: str, text: str) -> list[str]:
    """The capital letters that stand alone in a text, in order: in "(B)", "B." and "'B'", not in "B's" or "X-B"."""
    return re.findall(rf"(?<![\w-])[{letters}](?![\w-]|['’]\w)", text)


def infer(prediction: str, choices: dict[str, str]) -> str | None:
    """The one letter that stands alone (also an article "A"), else the one option whose text is contained, else None."""
    letters = set(alone("".join(choices), prediction))
    named = [letter for letter, text in choices.items() if text.strip().lower() in prediction.lower()]
    return letters.pop() if len(letters) == 1 else named[0] if len(named) == 1 else None


def letter(prediction: str, question: dict) -> float:
    """Open questions (of MMMU) are scored as if there were two options, the answer and "Other Answers"."""
    if choices := options(question):
        return float(infer(prediction, choices) == question["answer"].strip())
    return float(infer(prediction, {"A": question["answer"], "B": "Other Answers"}) == "A")


def last_letter(prediction: str, question: dict) -> float:
    return float(alone("".join(options(question)), prediction)[-1:] == [question["answer"].strip()])


def says(prediction: str) -> str | None:
    """The last "yes" or "no"."""
    return next(reversed(re.findall(r"\b(?:yes|no)\b", prediction.lower())), None)


def yes_no(prediction: str, question: dict) -> float:
    return float(says(prediction) == question["answer"].strip().lower())


def listed(text: str) -> list[str]:
    """A cell that holds a list, or one value."""
    try:
        return [str(value) for value in ast.literal_eval(text)] if text.startswith("[") and text.endswith("]") else [text]
    except (ValueError, SyntaxError):
        return [text]


WORDS = "zero one two three four five six seven eight nine ten".split()
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(WORDS)}


def plain(text: str) -> str:
    """The usual normalisation of VQA answers: case, punctuation, articles, number words (contractions stay)."""
    text = " ".join(text.split())
    original, thousands = text, re.search(r"\d,\d", text)
    for mark in ";/[]\"{}()=+\\_-><@`,?!":
        text = text.replace(mark, "" if thousands or f"{mark} " in original or f" {mark}" in original else " ")
    words = re.sub(r"\.(?!\d)", "", text).lower().split()
    return " ".join(NUMBERS.get(word, word) for word in words if word not in ("a", "an", "the"))


def vqa(prediction: str, question: dict) -> float:
    """min(1, matches / 3), averaged over leaving one of the (ten) answers out."""
    hits = [plain(answer) == plain(prediction) for answer in listed(question["answer"])]
    return float(np.mean([min(1, (sum(hits) - hit) / 3) for hit in hits]))


def relaxed(prediction: str, question: dict) -> float:
    """Within 5 % of a number, or equal. As in the public scorer, "1,200" and an answer of 0 are not compared as numbers."""

    def number(text: str) -> float | None:
        try:
            return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
        except ValueError:
            return None

    def right(answer: str) -> bool:
        if (said := number(prediction.strip())) is not None and (wanted := number(answer)):
            return abs(said - wanted) <= 0.05 * abs(wanted)
        return prediction.strip().lower() == answer.lower()

    return float(any(right(answer.strip()) for answer in listed(question["answer"])))


def contained(prediction: str, question: dict) -> float:
    formula = question["category"] == "Handwritten Mathematical Expression Recognition"

    def same(text: str) -> str:
        return re.sub(r"\s", "", text) if formula else text.lower().strip().replace("\n", " ")

    return float(any(same(answer) in same(prediction) for answer in listed(question["answer"])))


def mathvista(prediction: str, question: dict) -> float:
    """The option, else the last number, else (lists) the text; the public scorer asks a large model what was answered."""
    if question["question_type"] == "multi_choice":
        choices = dict(zip(string.ascii_uppercase, listed(question["choices"])))
        return float(infer(prediction, choices) == question["answer_option"].strip())
    try:
        wanted = float(question["answer"])
    except ValueError:
        return float("".join(question["answer"].lower().split()) in "".join(prediction.lower().split()))
    said = re.findall(r"-?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)", prediction)
    return float(bool(said) and math.isclose(float(said[-1].replace(",", "")), wanted, rel_tol=1e-9))


@dataclass
class Benchmark:
    score: Callable[[str, dict], float]
    paper: float | None
    choose: str | None = None     # appended to a question with options
    answer: str | None = None     # appended to an open question
    paper_row: str = "overall"    # what the paper's number is
    circular: bool = False        # asked in all rotations of the options, which must all be right


CHOOSE = "\nAnswer with the option's letter from the given choices directly."
BRIEF = "\nAnswer the question using a single word or phrase.\nYou must answer the question using a single word or phrase."
BENCHMARKS = {
    "SEEDBench_IMG": Benchmark(letter, 71.7, CHOOSE),
    "AI2D_TEST": Benchmark(letter, 74.4, CHOOSE),
    "RealWorldQA": Benchmark(letter, 60.9, CHOOSE),
    "ScienceQA_TEST": Benchmark(letter, None, CHOOSE),
    "MMBench_DEV_EN_V11": Benchmark(letter, 70.4, CHOOSE, circular=True),
    "MMStar": Benchmark(
        last_letter, 50.9, "Carefully read the question and reason step by step to determine the final correct answer. "
        'Format your answer as: "Answer: selected option (A B C or D)".'),
    "MMMU_DEV_VAL": Benchmark(
        letter, 36.0, "\nRead the question carefully. and think step by step to determine the correct answer. You MUST "
        "output ONLY the option letter corresponding to your choice or a very short phrase. Do NOT output reasoning, "
        "explanation, or any extra text. Output format: A single capital letter only or a very short phrase.",
        "\nRead the question carefully. and think carefully to determine the correct answer. Do NOT repeat the answer or "
        "include any unnecessary text.", paper_row="split validation"),
    "POPE": Benchmark(yes_no, 87.9, answer="\nAnswer the question using only a single word: 'Yes' or 'No'"),
    "TextVQA_VAL": Benchmark(vqa, None, answer=BRIEF),
    "ChartQA_TEST": Benchmark(relaxed, 75.7, answer=BRIEF),
    "OCRBench": Benchmark(contained, 58.4, answer="Answer the question.\nDo NOT include any unnecessary text."),
    "MathVista_MINI": Benchmark(
        mathvista, 50.5, answer="\nRead the question carefully. and think step by step if necessary. \nDo NOT repeat the "
        "answer or include any unnecessary text."),
}


def ask(question: dict, benchmark: Benchmark) -> str:
    """A row of the TSV file -> what the model is asked after the pictures. Raises ValueError when options are missing."""
    if not benchmark.choose:
        return question["question"] + benchmark.answer
    choices, hint = options(question), question.get("hint")
    if not choices and not benchmark.answer:
        raise ValueError(f"index {question['index']} has no options; is this the file of another benchmark?")
    text = (f"Hint: {hint}\n" if hint else "") + f"Question: {question['question']}\n"
    if not choices:
        return text + benchmark.answer
    text += "Options:\n" + "".join(f"{letter}. {choice}\n" for letter, choice in choices.items())
    return text + "Please select the correct answer from the options above. \n" + benchmark.choose


def key(benchmark: Benchmark, question: dict) -> str | int:
    """The same for all rotations of a question's options, which a circular benchmark numbers a million apart."""
    return int(question["index"]) % 1_000_000 if benchmark.circular else question["index"]


def first(benchmark: Benchmark, questions: list[dict], limit: int | None) -> list[dict]:
    """The first `limit` questions, each with all its rotations."""
    chosen = set([*dict.fromkeys(key(benchmark, question) for question in questions)][:limit])
    return [question for question in questions if key(benchmark, question) in chosen]


def summarize(benchmark: Benchmark, questions: list[dict], predictions: list[str]) -> list[dict]:
    """Rows in percent: overall, then by split and category."""
    parts: dict[str, list] = {"overall": []}
    turns: dict = {}
    for question, said in zip(questions, predictions):
        turns.setdefault(key(benchmark, question), []).append((question, said))
    pope = benchmark.score is yes_no
    for group in turns.values():
        question, right = group[0][0], min(benchmark.score(said, asked) for asked, said in group)
        item = (right, says(group[0][1]) == "yes", question["answer"].strip().lower() == "yes") if pope else right
        # As in the public scorer, a question of POPE counts once in each of its categories, overall too.
        categories = (question.get("category") or "").split(",") if pope else [question.get("category")]
        parts["overall"] += [item] * len(categories)
        names = [(column, question.get(column)) for column in ("split", "l2-category", "task")]
        for name in (f"{c} {v}" for c, v in names + [("category", c) for c in categories] if v):
            parts.setdefault(name, []).append(item)
    if pope:
        return [r for name, items in parts.items() for r in pope_rows(name, items, benchmark.paper)]
    papers = {benchmark.paper_row: benchmark.paper}
    return [row(name, items, papers.get(name), 100) for name, items in parts.items()]


def pope_rows(name: str, items: list[tuple[float, bool, bool]], paper: float) -> list[dict]:
    """F1 of "yes" and accuracy, from (right, said yes, is yes)."""
    both, said, true = (sum(values) for values in zip(*((s and t, s, t) for _, s, t in items)))
    f1 = {"name": f"{name} (F1)", "value": 200 * both / max(said + true, 1), "error": None, "count": len(items)}
    accuracy = row(f"{name} (accuracy)", [right for right, _, _ in items], None, 100)
    return [f1 | {"paper": paper if name == "overall" else None}, accuracy]


# ---- questions, pictures, answers ---------------------------------------------------------------

def tsv_rows(path: Path, start: int = 0) -> Iterator[tuple[int, list[str]]]:
    """(byte where it begins, cells) of each row from a byte on."""
    csv.field_size_limit(sys.maxsize)  # a picture is one cell
    with open(path, "rb") as file:
        begin = start
        file.seek(begin)
        for cells in csv.reader((line.decode("utf-8-sig") for line in file), delimiter="\t", strict=True):
            yield begin, cells
            begin = file.tell()


class Questions:
    """The rows of a VLMEvalKit TSV file without their pictures, which are read when they are asked for.

    Raises FileNotFoundError, or ValueError for a damaged row."""

    def __init__(self, path: Path):
        self.path, self.rows, self.begins = path, [], {}
        rows, number = tsv_rows(path), 1
        try:
            self.columns = next(rows, (0, []))[1]
            if missing := {"index", "image", "question", "answer"} - set(self.columns):
                raise ValueError(f"it has no column {', '.join(sorted(missing))}")
            for number, (begin, cells) in enumerate(rows, 2):
                if len(cells) != len(self.columns):
                    raise ValueError(f"it has {len(cells)} cells, not {len(self.columns)}")
                question = dict(zip(self.columns, cells))
                if question["index"] in self.begins:
                    raise ValueError(f"index {question['index']} comes twice")
                self.begins[question["index"]] = begin
                image = question.pop("image")
                self.rows.append(question | {"image of": image if len(image) <= 64 else question["index"]})
        except OSError as error:
            raise FileNotFoundError(f"cannot open {path} ({error.strerror})") from None
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}, row {number} is damaged: {error}; get the file again") from None
        if not self.rows:
            raise ValueError(f"{path} holds no questions")

    def pictures(self, question: dict) -> list[Image.Image]:
        """Raises ValueError for what is not a picture."""
        try:
            cell = next(tsv_rows(self.path, self.begins[question["image of"]]))[1][self.columns.index("image")]
            texts = ast.literal_eval(cell) if cell.startswith("[") else [cell]
            return [open_picture(io.BytesIO(base64.b64decode(text, validate=True))) for text in texts]
        except (KeyError, ValueError, SyntaxError):
            problem = f"the picture of index {question['index']} is missing or damaged"
            raise ValueError(f"{self.path}: {problem}; get the file again") from None


def gather(out: Path, name: str) -> dict[str, str]:
    """OUT/NAME.jsonl and what other processes have left beside it, made one file -> index: prediction."""
    parts = [path for path in (out / f"{name}.jsonl", *sorted(out.glob(f"{name}.part-*.jsonl"))) if path.exists()]
    lines = {line["index"]: line for part in parts for line in json_lines(part, "index", "prediction", killed=True)}
    (partial := out / f".{name}.jsonl.partial").write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    os.replace(partial, out / f"{name}.jsonl")
    for part in out.glob(f"{name}.part-*.jsonl"):
        part.unlink()
    return {index: line["prediction"] for index, line in lines.items()}


def answer(model: Cheers, out: Path, name: str, questions: list[dict], prompt: Callable[[dict], str],
           see: Callable[[dict], list[Image.Image]], batch: int, max_new_tokens: int) -> list[str]:
    """Greedy answers to all questions, `batch` at once, shared among the processes; what OUT/NAME.jsonl holds is kept."""
    known = shared(lambda: gather(out, name))
    mine = [question for question in questions if question["index"] not in known][RANK::WORLD]
    path = out / (f"{name}.part-{RANK}.jsonl" if RANK else f"{name}.jsonl")
    title = f"{name}, process {RANK + 1} of {WORLD}"
    for start in tqdm(range(0, len(mine), batch), title, unit="question", unit_scale=batch, disable=RANK > 0):
        some = mine[start : start + batch]
        texts = generate_texts(model, [prompt(q) for q in some], [see(q) for q in some], max_new_tokens=max_new_tokens)
        write_lines(path, [{"index": q["index"], "answer": q["answer"], "prediction": t} for q, t in zip(some, texts)])
    total(torch.zeros(1))  # all have written
    known = shared(lambda: gather(out, name))
    return [known[question["index"]] for question in questions]


# ---- easy-VQA: a small real benchmark --------------------------------------------------------------------------

EASY = "easy-vqa"  # in OUT: the folder of the data, and the name of the results


def prepare_easy_vqa(source: Path, out: Path) -> list[dict]:
    """The PyPI package easy-vqa, unpacked or as .whl or .tar.gz -> OUT/easy-vqa, its data, and OUT/train.jsonl for train.py,
    a line per question, unless they are there; returns the test questions. Raises ValueError or OSError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out) as name:
            folder = Path(name)
            if source.is_file():
                how = {"filter": "data"} if ".tar" in source.name else {"format": "zip"}
                shutil.unpack_archive(source, folder, **how)
            found = [path.parent.parent for path in (folder if source.is_file() else source).rglob("train/questions.json")]
            if not found:
                raise ValueError(f"{source} holds no easy-VQA; get it with: pip download easy-vqa --no-deps")
            if not (out / EASY).exists():
                shutil.copytree(found[0], folder / "whole")
                os.replace(folder / "whole", out / EASY)
        if not (out / "train.jsonl").exists():
            with open(partial := out / ".train.jsonl.partial", "w") as lines:
                for k, (question, answer, image) in enumerate(json.loads((out / EASY / "train/questions.json").read_text())):
                    turns = [human(f"{LOOK}\n{question}"), gpt(answer)]
                    image = f"{EASY}/train/images/{image}.png"
                    lines.write(json.dumps({"id": k, "image": image, "conversations": turns}) + "\n")
            os.replace(partial, out / "train.jsonl")
        tests = json.loads((out / EASY / "test/questions.json").read_text())
        return [{"index": str(k), "question": q, "answer": a, "image": f"{n}.png"} for k, (q, a, n) in enumerate(tests)]
    except (shutil.ReadError, zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
        raise ValueError(f"{source} cannot be used: {error}") from None
    except OSError as error:
        raise OSError(f"cannot write to {out} ({error.strerror}); choose another --out") from None


def easy_rows(questions: list[dict], predictions: list[str]) -> list[dict]:
    """Accuracy in percent, overall and by kind of question."""
    shapes, kinds = ("circle", "rectangle", "triangle"), {"overall": [], "yes or no": [], "shape": [], "color": []}
    for question, said in zip(questions, predictions):
        wanted, right = question["answer"], float(said.strip().lower() == question["answer"])
        for name in ("overall", "yes or no" if wanted in ("yes", "no") else "shape" if wanted in shapes else "color"):
            kinds[name].append(right)
    return [row(name, right, None, 100) for name, right in kinds.items() if right]
