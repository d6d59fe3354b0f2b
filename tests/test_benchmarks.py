"""Chapter 11: the public benchmarks. Pictures are painted by the tiny checkpoint; files of questions are made here."""

import base64
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

import benchmarks
import evaluate
import questions
import shapes
from benchmarks import fulfils, geneval_score, relations
from conftest import ROOT
from data import open_picture, to_pixels
from questions import BENCHMARKS, Questions, ask, contained, first, last_letter, letter, mathvista, relaxed, summarize, vqa, yes_no
from sample import generate_images, seeded_noise

PROMPTS = [
    {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a circle"},
    {"tag": "two_object", "include": [{"class": "star", "count": 1}, {"class": "circle", "count": 1}],
     "prompt": "a star and a circle"},
    {"tag": "counting", "include": [{"class": "star", "count": 2}], "exclude": [{"class": "star", "count": 3}],
     "prompt": "two stars"},
]


@pytest.fixture
def run(monkeypatch):
    """evaluate.py in this process."""

    def run(*words) -> None:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words)])
        evaluate.main()

    return run


@pytest.fixture
def metadata(tmp_path):
    path = tmp_path / "metadata.jsonl"
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    return path


def contents(folder) -> dict:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- painting --------------------------------------------------------------------------------------------------


def test_a_killed_geneval_run_goes_on_to_the_same_files(run, metadata, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    words = ["geneval", "--metadata", metadata, "--steps", "5", "--batch", "2", "--device", "cpu", "--out"]
    process = subprocess.Popen([sys.executable, ROOT / "evaluate.py", *words, killed], stderr=subprocess.DEVNULL)
    while len(list(killed.glob("*/samples/*.png"))) < 3:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = sorted(killed.glob("*/samples/0*.png"))
    assert 3 <= len(finished) < 12
    times = [path.stat().st_mtime_ns for path in finished]
    (killed / "00002" / "samples" / ".00003.png.partial").write_bytes(finished[0].read_bytes()[:100])  # half a picture
    run(*words, killed)
    run(*words, whole)
    assert [path.stat().st_mtime_ns for path in finished] == times  # not made again
    assert contents(killed) == contents(whole)
    names = {f"{i:05d}/samples/{k:05d}.png" for i in range(3) for k in range(4)}
    assert set(contents(whole)) == names | {f"{i:05d}/metadata.jsonl" for i in range(3)} | {"settings.json"}
    assert json.loads((whole / "00002" / "metadata.jsonl").read_text()) == PROMPTS[2]
    assert len({contents(whole)[name] for name in names}) == 12  # noise of their own
    with pytest.raises(ValueError, match="holds results of another seed, steps; choose another --out"):
        run(*words, whole, "--steps", "9", "--seed", "1")
    (whole / "settings.json").unlink()
    with pytest.raises(ValueError, match="unknown settings"):
        run(*words, whole)


def test_dpg_grids_run_left_to_right_top_to_bottom_whatever_the_batch_and_the_processes(run, tmp_path, tiny, monkeypatch):
    (prompts := tmp_path / "prompts").mkdir()
    (prompts / "10.txt").write_text("a star\n")
    (prompts / "x.txt").write_text("a red circle and a blue square")
    words = ["dpg", "--prompts", prompts, "--steps", "4", "--device", "cpu"]
    run(*words, "--out", tmp_path / "ours", "--exact")
    run(*words, "--out", tmp_path / "released", "--batch", "3")
    monkeypatch.setattr(benchmarks, "WORLD", 2)
    monkeypatch.setattr(benchmarks, "RANK", 1)
    run(*words, "--out", tmp_path / "second", "--exact", "--batch", "3")
    assert set(contents(tmp_path / "ours")) == {"10.jpg", "x.jpg", "settings.json"}
    assert set(contents(tmp_path / "second")) == {"x.jpg", "settings.json"}

    settings = {"steps": 4, "guidance": 9.5, "shift": 0.5}
    noise = torch.stack([seeded_noise(0, (1 << 20) + k, (8, 8, 8)) for k in range(4)])  # prompt 1, pictures 0 to 3
    random = [np.random.default_rng([0, (1 << 20) + k, 1]).integers(0, 256, (256, 256, 3), dtype=np.uint8) for k in range(4)]
    release = {"grid": "released", "dummy_pixels": [Image.fromarray(array) for array in random]}
    text = "a red circle and a blue square"
    for names, special in ((("ours", "second"), {}), (("released",), release)):
        pixels = generate_images(tiny, [text] * 4, noise=noise, **special, **settings)
        expected = torch.cat([torch.cat(list(pixels[:2]), 2), torch.cat(list(pixels[2:]), 2)], 1)
        mixed = torch.cat([torch.cat(list(pixels[::2]), 2), torch.cat(list(pixels[1::2]), 2)], 1)
        for name in names:
            found = to_pixels(open_picture(tmp_path / name / "x.jpg"))
            assert (found - expected).abs().mean() < 0.02 < (found - mixed).abs().mean()
    assert contents(tmp_path / "ours")["x.jpg"] != contents(tmp_path / "released")["x.jpg"]


# ---- GenEval's rules -------------------------------------------------------------------------------------------


def seen(name: str, box=(0, 0, 10, 10), score=0.95, color=None) -> dict:
    return {"class": name, "score": score, "box": list(box), "color": color}


def test_geneval_positions():
    square = (0, 0, 10, 10)
    assert relations((20, 0, 30, 10), square) == {"right of"} and relations(square, (20, 0, 30, 10)) == {"left of"}
    assert relations((0, 20, 10, 30), square) == {"below"} and relations(square, (0, 20, 10, 30)) == {"above"}
    assert relations((20, 20, 30, 30), square) == {"right of", "below"}
    assert relations((40, 10, 50, 20), square) == {"right of"}  # too little below
    assert relations((3, 0, 13, 10), square) == set()  # an offset of 3 less 0.1 · (10 + 10) is 1, a third of it
    assert relations((5, 0, 15, 10), square) == {"right of"}  # 5 less 2 is 3, three fifths
    assert relations(square, square) == set()


@pytest.mark.parametrize("prompt, objects, right", [
    (PROMPTS[0], [seen("circle", score=0.31)], True),
    (PROMPTS[0], [seen("circle", score=0.3)], False),  # strictly above
    (PROMPTS[0], [seen("star")], False),
    (PROMPTS[1], [seen("star"), seen("circle"), seen("star")], True),  # more are allowed
    (PROMPTS[1], [seen("star")], False),
    (PROMPTS[2], [seen("star"), seen("star")], True),
    (PROMPTS[2], [seen("star"), seen("star", score=0.9)], False),  # counting wants more than 0.9
    (PROMPTS[2], [seen("star")] * 3, False),  # excluded
    (PROMPTS[2], [seen("star"), seen("star"), seen("star", score=0.8)], True),
])
def test_geneval_objects_counts_and_exclusions(prompt, objects, right):
    assert fulfils(prompt, objects) == right


def test_geneval_colours_and_relations_hold_for_the_surest_objects():
    red = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}]}
    assert fulfils(red, [seen("car", color="red"), seen("car", score=0.5, color="blue")])
    assert not fulfils(red, [seen("car", score=0.5, color="red"), seen("car", color="blue")])
    both = {"tag": "color_attr", "include": red["include"] + [{"class": "cup", "count": 1, "color": "blue"}]}
    assert fulfils(both, [seen("cup", color="blue"), seen("car", color="red")])
    assert not fulfils(both, [seen("cup", color="red"), seen("car", color="blue")])
    kite = {"class": "kite", "count": 1, "position": ["above", 0]}
    above = {"tag": "position", "include": [{"class": "cup", "count": 1}, kite]}
    cup = seen("cup", (0, 30, 10, 40))
    assert fulfils(above, [cup, seen("kite")]) and not fulfils(above, [cup, seen("kite", (0, 60, 10, 70))])
    assert not fulfils(above, [seen("kite")])  # nothing to be above of
    many = {"tag": "single_object", "include": [{"class": "x", "count": 1}], "exclude": [{"class": "x", "count": 17}]}
    assert fulfils(many, [seen("x")] * 20)  # at most 16 of a class are looked at


def test_geneval_score_is_the_mean_of_the_tasks(run, metadata, tmp_path, capsys):
    lines = [{"index": 0, "picture": k, "objects": [seen("circle")] * (k > 0)} for k in range(4)]
    lines += [{"index": 1, "picture": 0, "objects": []}, {"index": 2, "picture": 0, "objects": [seen("star")] * 2}]
    (path := tmp_path / "detections.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = {row["name"]: row for row in geneval_score(PROMPTS, path)}
    assert [rows[task]["value"] for task in ("single_object", "two_object", "counting", "overall")] == [0.75, 0, 1, 1.75 / 3]
    assert abs(rows["single_object"]["error"] - (0.75 * 0.25 / 4) ** 0.5) < 1e-12 and rows["overall"]["count"] == 6
    run("geneval-score", "--metadata", metadata, "--detections", path)
    assert "| single_object | 0.750 | 0.217 | 4 | 0.98 |" in capsys.readouterr().out
    for line, sentence in (
        ('{"index": 9, "picture": 0, "objects": []}', "index 9 has no prompt; there are 3"),
        ('{"index": 0, "picture": 0, "objects": []}\n' * 2, "picture 0 of index 0 comes twice"),
        ('{"index": 0, "picture": 0, "objects": [{"class": "circle"}]}', "an object without class, score"),
        ('{"index": 0, "picture": 0}', "line 1 is not a JSON object with index, picture, objects"),
        ('{"index": [0], "picture": 0, "objects": []}', "must be whole numbers"),
        ("nonsense", "line 1 is not JSON"), ("", "holds no pictures"),
    ):
        path.write_text(line)
        with pytest.raises(ValueError, match=sentence):
            geneval_score(PROMPTS, path)
    nowhere = {"tag": "position", "include": [{"class": "cat", "count": 1, "position": ["left of", 5]}]}
    with pytest.raises(ValueError, match="prompt 1 of the metadata is not one of GenEval's"):
        geneval_score([PROMPTS[0], nowhere], path)


# ---- rules of understanding ------------------------------------------------------------------------------------

FOUR = {"A": "a dog", "B": "a cat", "C": "two cows", "D": "none", "answer": "B"}


@pytest.mark.parametrize("score, prediction, question, value", [
    (letter, "B", FOUR, 1), (letter, "The answer is (B).", FOUR, 1), (letter, "**B**: a dog", FOUR, 1),
    (letter, "B. B!", FOUR, 1),
    (letter, "It is a cat.", FOUR, 1), (letter, "A CAT", FOUR, 0), (letter, "'B'", FOUR, 1),
    (letter, "a cat or a dog", FOUR, 0),
    (letter, "B or C", FOUR, 0), (letter, "b", FOUR, 0), (letter, "", FOUR, 0), (letter, "Bob's X-B", FOUR, 0),
    (letter, "C", FOUR, 0),
    (letter, "The Nile", {"answer": "nile"}, 1), (letter, "A", {"answer": "nile"}, 1),
    (letter, "Other answers", {"answer": "nile"}, 0),
    (last_letter, "Not A. Answer: B", FOUR, 1), (last_letter, "B, not A", FOUR, 0), (last_letter, "a cat", FOUR, 0),
    (last_letter, "", FOUR, 0),
    (yes_no, "Yes, it is.", {"answer": "Yes"}, 1), (yes_no, "yes and no", {"answer": "Yes"}, 0),
    (yes_no, "yes and no", {"answer": "No"}, 1),
    (yes_no, "nothing", {"answer": "No"}, 0), (yes_no, "", {"answer": "No"}, 0),
    (vqa, "The Bus!", {"answer": str(["bus"] * 3 + ["car"] * 7)}, 0.9), (vqa, "two", {"answer": str(["2"] * 10)}, 1),
    (vqa, "1,200", {"answer": str(["1200"] * 10)}, 1), (vqa, "a car", {"answer": str(["bus"] * 9 + ["car"])}, 0.3),
    (vqa, "", {"answer": str(["bus"] * 10)}, 0), (vqa, "3.5", {"answer": str(["3.5."] * 10)}, 1),
    (relaxed, "105", {"answer": "100"}, 1), (relaxed, "106", {"answer": "100"}, 0), (relaxed, "-95", {"answer": "-100"}, 1),
    (relaxed, "12%", {"answer": "0.12"}, 1), (relaxed, "12%", {"answer": "12"}, 0), (relaxed, "Red ", {"answer": "red"}, 1),
    (relaxed, "1,200", {"answer": "1200"}, 0), (relaxed, "1,200", {"answer": "1,200"}, 1),
    (relaxed, "0.0", {"answer": "0"}, 0),
    (relaxed, "", {"answer": "100"}, 0), (relaxed, "b", {"answer": "['a', 'b']"}, 1),
    (contained, "It says STOP here", {"answer": "['Stop', 'halt']", "category": "Scene"}, 1),
    (contained, "s t o p", {"answer": "['stop']", "category": "Scene"}, 0),
    (contained, "x ^ 2 + Y", {"answer": r"['x^2+Y']", "category": "Handwritten Mathematical Expression Recognition"}, 1),
    (contained, "x^2+y", {"answer": r"['x^2+Y']", "category": "Handwritten Mathematical Expression Recognition"}, 0),
    (contained, "", {"answer": "['stop']", "category": "Scene"}, 0),
    (mathvista, "so (B)", {"question_type": "multi_choice", "choices": "['1', '2']", "answer_option": "B"}, 1),
    (mathvista, "it is 1", {"question_type": "multi_choice", "choices": "['1', '2']", "answer_option": "B"}, 0),
    (mathvista, "3 + 4 = 7.0", {"question_type": "free_form", "answer": "7"}, 1),
    (mathvista, "7 of 9", {"question_type": "free_form", "answer": "7"}, 0),
    (mathvista, "1,200", {"question_type": "free_form", "answer": "1200"}, 1),
    (mathvista, "-.5", {"question_type": "free_form", "answer": "-0.5"}, 1),
    (mathvista, "12%", {"question_type": "free_form", "answer": "12"}, 1),
    (mathvista, "", {"question_type": "free_form", "answer": "7"}, 0),
    (mathvista, "They are [1, 2].", {"question_type": "free_form", "answer": "[1,2]"}, 1),
])
def test_answers_are_scored(score, prediction, question, value):
    assert score(prediction, question) == pytest.approx(value)


def test_rotations_must_all_be_right_and_mmmu_keeps_its_parts_apart():
    question = {"A": "x", "B": "y", "answer": "A", "category": "c"}
    asked = [question | {"index": str(i + turn)} for turn in (0, 1_000_000) for i in (3, 4)]
    rows = {row["name"]: row for row in summarize(BENCHMARKS["MMBench_DEV_EN_V11"], asked, ["A", "A", "B", "A"])}
    assert first(BENCHMARKS["MMBench_DEV_EN_V11"], asked, 1) == asked[::2]  # with its other rotation
    assert rows["overall"]["value"] == 50 and rows["overall"]["count"] == 2 and rows["overall"]["paper"] == 70.4
    asked = [question | {"index": str(i), "split": split} for i, split in enumerate(["dev", "validation", "validation"])]
    rows = {row["name"]: row for row in summarize(BENCHMARKS["MMMU_DEV_VAL"], asked, ["A", "B", "A"])}
    assert rows["split dev"]["value"] == 100 and rows["split validation"]["value"] == 50
    assert rows["split validation"]["paper"] == 36.0 and rows["overall"]["paper"] is None


def test_pope_counts_questions_once_in_each_category():
    asked = [{"index": str(i), "answer": answer, "category": category} for i, (answer, category) in enumerate(
        [("Yes", "random,popular"), ("Yes", "random"), ("No", "popular"), ("No", "random")])]
    rows = {row["name"]: row for row in summarize(BENCHMARKS["POPE"], asked, ["yes", "no", "Yes", "?"])}
    assert rows["overall (F1)"]["value"] == pytest.approx(100 * 2 * 2 / (3 + 3)) and rows["overall (F1)"]["paper"] == 87.9
    assert rows["overall (accuracy)"]["value"] == pytest.approx(40) and rows["category random (F1)"]["count"] == 3


# ---- files of questions ----------------------------------------------------------------------------------------


def cell(color: str, kind: str) -> str:
    Image.new("RGB", (40, 30), color).save(file := io.BytesIO(), kind)
    return base64.b64encode(file.getvalue()).decode()


def write_tsv(path, rows: list[dict]):
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    return path


MMMU = [
    {"index": 7, "image": "12", "hint": "look", "question": 'Which "one"?\nThis\tor that?',
     "A": "é", "B": "None", "answer": "B", "split": "dev"},
    {"index": 12, "image": cell("red", "PNG"), "question": "What?", "answer": "red", "split": "validation"},
    {"index": 13, "image": str([cell("blue", "JPEG"), cell("lime", "PNG")]), "question": "Both?",
     "A": "yes", "answer": "A", "split": "validation"},
]


def test_a_tsv_gives_texts_and_pictures(tmp_path):
    file = Questions(write_tsv(tmp_path / "MMMU_DEV_VAL.tsv", MMMU))
    first, second, third = file.rows
    mmmu, star = BENCHMARKS["MMMU_DEV_VAL"], BENCHMARKS["MMStar"]
    text = 'Hint: look\nQuestion: Which "one"?\nThis\tor that?\nOptions:\nA. é\nB. None\n'
    text += "Please select the correct answer from the options above. \n"
    assert ask(first, mmmu).startswith(text + "\nRead the question carefully. and think step by step to")
    assert ask(first, star).startswith(text + "Carefully read the question") and ask(first, star).endswith('(A B C or D)".')
    assert ask(second, mmmu).startswith("Question: What?\n\nRead the question carefully. and think carefully")
    assert ask(second, BENCHMARKS["OCRBench"]) == "What?Answer the question.\nDo NOT include any unnecessary text."
    brief = "What?\nAnswer the question using a single word or phrase."
    brief += "\nYou must answer the question using a single word or phrase."
    assert ask(second, BENCHMARKS["ChartQA_TEST"]) == brief == ask(second, BENCHMARKS["TextVQA_VAL"])
    with pytest.raises(ValueError, match="index 12 has no options"):
        ask(second, star)
    colors = [[picture.getpixel((20, 15)) for picture in file.pictures(row)] for row in file.rows]
    assert colors[0] == colors[1] == [(255, 0, 0)] and colors[2][1] == (0, 255, 0)
    assert np.allclose(colors[2][0], (0, 0, 255), atol=3)


def test_damaged_files_are_told_in_one_sentence(tmp_path, run):
    path = write_tsv(tmp_path / "MMMU_DEV_VAL.tsv", MMMU)
    whole = path.read_text()
    out = tmp_path / "out"
    for text, sentence in (
        (whole[: whole.index("What?")], "row 3 is damaged: it has 4 cells, not 8; get the file again"),
        (whole.replace("12\t", "7\t"), "row 3 is damaged: index 7 comes twice"),
        (whole.replace("answer", "reply"), "row 1 is damaged: it has no column answer"),
        ("", "row 1 is damaged: it has no column"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=sentence):
            run("understanding", "--tsv", path, "--out", out)
    with pytest.raises(FileNotFoundError, match="cannot open .*missing.tsv"):
        run("understanding", "--tsv", tmp_path / "missing.tsv", "--benchmark", "POPE", "--out", out)
    with pytest.raises(ValueError, match="there is no benchmark missing; choose --benchmark from SEEDBench_IMG"):
        run("understanding", "--tsv", tmp_path / "missing.tsv", "--out", out)
    path.write_text(whole)
    with pytest.raises(ValueError, match="cannot be scored as MathVista_MINI .KeyError: 'question_type'"):
        run("understanding", "--tsv", path, "--benchmark", "MathVista_MINI", "--out", out)
    assert not out.exists()
    for image in ("99", "", "A" * 100):
        file = Questions(write_tsv(path, [{"index": 1, "image": image, "question": "?", "answer": "a"}]))
        with pytest.raises(ValueError, match="the picture of index 1 is missing or damaged; get the file again"):
            file.pictures(file.rows[0])


def test_a_killed_understanding_run_goes_on(run, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    rows = []
    for index in range(5):
        scene = shapes.random_scene(rng, 1)
        shapes.draw(scene, 32).save(file := io.BytesIO(), "PNG")
        question, answer = shapes.question(scene, rng)
        image = base64.b64encode(file.getvalue()).decode()
        rows.append({"index": index, "image": image, "question": question, "answer": answer, "split": "s"})
    path, out = write_tsv(tmp_path / "toy.tsv", rows), tmp_path / "out"
    words = ["understanding", "--tsv", path, "--benchmark", "ChartQA_TEST", "--batch", "2", "--device", "cpu", "--out", out]
    asked = Counter()

    def counted(model, prompts, images, **settings):
        asked.update(prompts)
        if len(asked) > limit:
            raise KeyboardInterrupt
        return generate(model, prompts, images, **settings)

    generate, limit = questions.generate_texts, 3
    monkeypatch.setattr(questions, "generate_texts", counted)
    with pytest.raises(KeyboardInterrupt):
        run(*words)
    with open(out / "ChartQA_TEST.jsonl", "a") as file:
        file.write('{"index": "2", "predic')  # what a kill leaves
    (out / "ChartQA_TEST.part-1.jsonl").write_text('{"index": "4", "prediction": "by another process"}\n')
    asked, limit = Counter(), 9
    run(*words)
    assert sum(asked.values()) == 2  # the first two and the last were there
    lines = [json.loads(line) for line in open(out / "ChartQA_TEST.jsonl")]
    assert sorted(line["index"] for line in lines) == list("01234") and not list(out.glob("*part*"))
    result = json.loads((out / "ChartQA_TEST.json").read_text())["rows"][0]
    said = {line["index"]: line["prediction"].lower() for line in lines}
    right = [said[str(row["index"])] == row["answer"] for row in rows]
    assert result["value"] == pytest.approx(100 * np.mean(right)) and result["count"] == 5 and result["paper"] == 75.7
    assert "| overall | " in capsys.readouterr().out
    write_tsv(path, rows[:4])
    with pytest.raises(ValueError, match="holds results of another questions"):
        run(*words)


# ---- easy-VQA --------------------------------------------------------------------------------------------------


def test_easy_vqa_is_prepared_and_scored(run, tmp_path, capsys):
    with zipfile.ZipFile(wheel := tmp_path / "easy_vqa-1.0-py3-none-any.whl", "w") as archive:
        for part in ("train", "test"):
            asked = [["what color is it?", "red", 0], ["is there a circle?", "yes", 0], ["what shape is it?", "circle", 0]]
            archive.writestr(f"easy_vqa/data/{part}/questions.json", json.dumps(asked))
            archive.writestr(f"easy_vqa/data/{part}/images/0.png", base64.b64decode(cell("red", "PNG")))
    out = tmp_path / "out"
    run("easy-vqa", "--data", wheel, "--out", out, "--prepare")
    lines = [json.loads(line) for line in open(out / "train.jsonl")]
    assert [turn["value"] for turn in lines[1]["conversations"]] == ["<im_start><image><im_end>\nis there a circle?", "yes"]
    assert open_picture(out / lines[1]["image"]).size == (40, 30)
    assert set(os.listdir(out)) == {"easy-vqa", "train.jsonl"}
    run("easy-vqa", "--data", wheel, "--out", out, "--device", "cpu", "--limit", "2")
    rows = {row["name"]: row["count"] for row in json.loads((out / "easy-vqa.json").read_text())["rows"]}
    assert rows == {"overall": 2, "yes or no": 1, "color": 1} and "| overall |" in capsys.readouterr().out
    asked = [{"answer": "yes"}, {"answer": "circle"}, {"answer": "red"}, {"answer": "blue"}]
    rows = {row["name"]: row["value"] for row in questions.easy_rows(asked, ["Yes ", "circle", "blue", "blue"])}
    assert rows == {"overall": 75, "yes or no": 100, "shape": 100, "color": 50}
    (wheel := tmp_path / "broken.whl").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="broken.whl cannot be used"):
        run("easy-vqa", "--data", wheel, "--out", tmp_path / "other")
