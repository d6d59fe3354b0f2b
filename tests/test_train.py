"""Chapter 8: training. Real processes on the toy world, a few steps each."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from conftest import ROOT
from data import ToySteps, toy_sample
from train import learning_rate


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def weights(out) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def metrics(out) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_steps_take_every_line_once_and_in_order_of_seed(tiny):
    steps = ToySteps(100, 4, 0, tiny.tokenizer, tiny.config)
    lines = [toy_sample(line, 1, 0, tiny.tokenizer, tiny.config) for line in range(12)]
    batches = [steps[step] for step in range(3)]
    assert [len(batch.ids) for batch in batches] == [4, 4, 4]
    seen = sorted(tuple(row[row != 0].tolist()) for batch in batches for row in batch.ids)
    assert seen == sorted(tuple(i for i in sample.ids if i) for sample in lines)


def test_the_learning_rate_warms_up_and_ends_at_zero():
    rates = [learning_rate(step, 1000, 1.0) for step in range(1001)]
    assert rates[0] == 1 / 20 and max(rates) <= 1 and rates[-1] < 1e-6
    assert rates.index(max(rates)) == 19  # 2 % of the steps


def test_training_from_nothing_and_going_on_after_a_stop(tmp_path):
    """Stopped after 4 of 8 steps and started again, a run ends in the same weights, bit for bit."""
    short = ["--vae-steps", 4, "--batch", 4, "--save-every", 2, "--log-every", 2, "--steps", 8]
    whole = run("--out", tmp_path / "whole", *short)
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.strip().splitlines()[-1] == str(tmp_path / "whole" / "model")
    lines = metrics(tmp_path / "whole")
    assert {line["phase"] for line in lines} == {"vae", "cheers"}
    assert all(line["loss"] > 0 for line in lines if "loss" in line)
    assert list((tmp_path / "whole").glob("samples-*.png"))

    # what a stop leaves behind: everything but what came after step 4
    (tmp_path / "whole").rename(tmp_path / "stopped")
    before = weights(tmp_path / "stopped")
    for late in ("cheers-0000006", "cheers-0000008"):
        folder = tmp_path / "stopped" / late
        if folder.exists():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    for file in (tmp_path / "stopped" / "model").iterdir():
        file.unlink()
    again = run("--out", tmp_path / "stopped", *short)
    assert again.returncode == 0, again.stderr
    after = weights(tmp_path / "stopped")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_init_trains_a_checkpoint_further_and_leaves_the_vae_alone(tmp_path):
    init = ROOT / "weights" / "tiny"
    done = run("--init", init, "--out", tmp_path, "--steps", 3, "--batch", 4, "--lr", 1e-4)
    assert done.returncode == 0, done.stderr
    before, after = load_file(init / "model.safetensors"), weights(tmp_path)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("model.vae_model.") for name in moved)
    parts = {".".join(name.split(".")[:2]) for name in moved}
    assert {"model.language_model", "model.vision_representation", "model.gen_projector", "model.hi_projector"} <= parts


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--steps", "0"], "--steps must be at least 1"),
        (["--lr", "0"], "--lr must be positive"),
        (["--init", "nowhere"], "there is no folder nowhere"),
        (["--out", "/proc/no"], "cannot write"),
        (["--stepps", "3"], "unrecognized arguments"),
    ],
)
def test_bad_input_gets_one_sentence(arguments, sentence, tmp_path):
    done = run("--out", tmp_path, *arguments)
    assert done.returncode != 0 and sentence in done.stderr and "Traceback" not in done.stderr
