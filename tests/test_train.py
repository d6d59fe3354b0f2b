"""Chapter 8: training. Real processes, real files, real kills, a few steps each."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import cheers
import data
from cheers import Cheers
from conftest import ROOT
from data import JsonLines, Mixture, ToySource, collate, make_sample, pack, shuffled
from parallel import forget
from plan import bytes_per_process, cost
from tiny import toy_groups
from train import PRETRAINING, STAGES, TOY, freeze, learning_rate, wrap_blocks

TINY = ROOT / "weights" / "tiny"


# ---- real files and real processes -----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, Path]:
    """The toy world as files in the release's format, one per kind; pictures named in all the ways that are allowed."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "pictures").mkdir()
    spellings = (lambda names: names, json.dumps, ", ".join, ";".join)
    written = {}
    for make, lines in ((data.understanding, 24), (data.generation, 40), (data.editing, 12), (data.text_only, 10)):
        path = written[make.__name__] = folder / f"{make.__name__}.jsonl"
        with open(path, "w") as file:
            for k in range(lines):
                turns, pictures = make(np.random.default_rng([lines, k]), 2, 32)
                names = [f"pictures/{make.__name__}-{k}-{i}.png" for i in range(len(pictures))]
                for name, picture in zip(names, pictures):
                    picture.save(folder / name)
                line = {"id": k, "conversations": turns} | ({"image": spellings[k % 4](names)} if names else {})
                file.write(json.dumps(line) + "\n")
    return written


def command(out, *arguments, ranks: int = 1, restarts: int = 0) -> list[str]:
    launcher = [sys.executable]
    if ranks > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
                    "--max-restarts", str(restarts)]
    defaults = ["--log-every", "1", "--workers", "1", "--out", str(out)]
    return [*launcher, str(ROOT / "train.py"), *defaults, *map(str, arguments)]


def run(out, *arguments, ranks: int = 1, **more) -> subprocess.CompletedProcess:
    done = subprocess.run(command(out, *arguments, ranks=ranks), cwd=ROOT, capture_output=True, text=True, **more)
    return done


def succeed(out, *arguments, ranks: int = 1) -> list[dict]:
    """Runs to the end -> the metrics' lines."""
    done = run(out, *arguments, ranks=ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    return metrics(out)


def metrics(out) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 64, 1000])
def test_a_shuffle_is_a_permutation_and_its_own_for_every_seed(count):
    orders = [[shuffled(position, count, [seed]) for position in range(count)] for seed in (1, 2)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert count < 7 or orders[0] != orders[1] != list(range(count))


def mixture(files, tiny, **more) -> Mixture:
    sources = [JsonLines(path, path.parent, path.parent) for path in files.values()]
    settings = dict(batch=8, micro=2, seed=3, tokenizer=tiny.tokenizer, config=tiny.config, steps=30) | more
    return Mixture(sources, [3, 5, 2, 1], **settings)


def test_the_first_sample_tells_the_kind_of_a_file(files, tmp_path):
    lines = files["generation"].read_text()
    for k, content in enumerate((lines, "\n" + lines, lines.replace("<", "\\u003c"), lines.replace("image_gen", "image"))):
        (tmp_path / f"{k}.jsonl").write_text(content)
    kinds = [JsonLines(path, tmp_path, tmp_path).kind for path in sorted(tmp_path.glob("*.jsonl"))]
    assert kinds == ["generation"] * 3 + ["understanding"]


def rows(steps: list) -> list[tuple]:
    """The samples of some steps, in any order, as tuples of ids."""
    found = []
    for batch in (batch for step in steps for batch in step.batches):
        for ids, segments in zip(batch.ids, batch.segments):
            found += [tuple(ids[segments == k].tolist()) for k in segments.unique()]
    return sorted(row for row in found if len(set(row)) > 1)  # neither padding nor empty pictures


def test_every_pass_takes_every_line_once(files, tiny):
    mix = mixture(files, tiny)
    taken = {source.name: [] for source in mix.sources}
    for source in mix.sources:  # instead of reading the line, note it
        source.read = lambda line, rng, progress, name=source.name: taken[name].append(line) or data.text_only(rng, 1, 32)
    steps = [mix[step] for step in range(30)]
    for source, position in zip(mix.sources, steps[-1].positions.values()):
        lines = taken[source.name]
        assert len(lines) == position
        for start in range(0, len(lines), source.lines):
            part = lines[start : start + source.lines]
            assert len(set(part)) == len(part)
            assert len(part) < source.lines or set(part) == set(range(source.lines))


def test_a_step_is_the_same_for_any_number_of_processes_and_after_a_restart(files, tiny):
    alone = mixture(files, tiny)
    steps = [alone[step] for step in range(6)]
    shares = [mixture(files, tiny, rank=rank, world=4) for rank in range(4)]
    assert rows(steps) == rows([share[step] for step in range(6) for share in shares])
    again = mixture(files, tiny)
    again.go_to(4, steps[3].positions)
    for step in (4, 5):
        for batch, other in zip(steps[step].batches, again[step].batches):
            assert all(torch.equal(getattr(batch, f.name), getattr(other, f.name)) for f in fields(batch))


def test_packing_wastes_little_and_changes_nothing(tiny):
    """Samples that share a row have the loss that each has alone."""
    assert pack([5, 3, 2, 6], 8) == [[3, 2], [0, 1]]
    mix = Mixture([ToySource(make, 32) for make in data.TOY_MIX], list(data.TOY_MIX.values()), 12, 12, 0,
                  tiny.tokenizer, tiny.config, 10)
    samples, step = [], mix[9]
    for k in range(12):  # one sample at a time
        share = Mixture(mix.sources, mix.weights, 12, 12, 0, tiny.tokenizer, tiny.config, 10, rank=k, world=12)
        samples.append(share[9].batches[0])
    (packed,) = step.batches
    assert len(packed.ids) < 12 and 1 - step.tokens[0] / step.tokens[1] < 0.1
    with torch.no_grad():
        together, apart = tiny.loss(packed), [tiny.loss(sample) for sample in samples]
    counts = [int((sample.labels[:, 1:] >= 0).sum()) for sample in samples]
    text = sum(loss.text * count for loss, count in zip(apart, counts)) / sum(counts)
    torch.testing.assert_close(together.text, text, atol=1e-5, rtol=1e-5)
    errors = torch.cat([loss.errors[: int((sample.t < 1).sum())] for loss, sample in zip(apart, samples)])
    torch.testing.assert_close(together.errors.sort().values, errors.sort().values, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.image, errors.mean(), atol=1e-5, rtol=1e-5)


# ---- recipes ---------------------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_and_falls_only_along_a_cosine():
    cosine, constant = (replace(TOY, lr=1.0, steps=1000, schedule=schedule) for schedule in ("cosine", "constant"))
    rates = [learning_rate(step, cosine) for step in range(1001)]
    assert rates[0] == 1 / 20 and max(rates) <= 1 and rates[-1] < 1e-6
    assert rates.index(max(rates)) == 19  # 2 % of the steps
    assert [learning_rate(step, constant) for step in (0, 19, 999)] == [1 / 20, 1, 1]


def test_stages_are_the_papers():
    table = {number: (s.lr, s.schedule, s.batch, s.steps) for number, s in STAGES.items()}
    assert table == {1: (1e-4, "constant", 512, 30_000), 2: (1e-4, "constant", 512, 60_000),
                     3: (4e-5, "constant", 512, 65_000), 4: (2e-5, "cosine", 128, 30_000)}
    assert PRETRAINING == {"understanding": 3, "generation": 6, "text": 1}


@pytest.mark.parametrize("stage, ranks", [(1, 2), (2, 1), (3, 1), (4, 1)])
def test_a_stage_trains_its_parts_and_nothing_else(files, tmp_path, stage, ranks):
    """With activation checkpointing, as always in stages."""
    kinds = ("understanding", "generation", "text_only")[: len(STAGES[stage].mix)]
    lines = succeed(tmp_path, "--stage", stage, "--init", TINY, "--steps", 2, "--batch", 8,
                    "--data", *(files[kind] for kind in kinds), ranks=ranks)
    before, after = load_file(TINY / "model.safetensors"), weights(tmp_path)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    wanted = ("model.und_projector", "model.gen_projector", "model.hi_", "model.time_embed", "lm_head",
              "model.language_model.embed_tokens") if stage == 1 else ("model.", "lm_head")
    frozen = ("model.vae_model",)
    assert moved and all(name.startswith(wanted) and not name.startswith(frozen) for name in moved)
    matrices = {name for name in before if name.startswith(wanted) and not name.startswith(frozen) and before[name].ndim > 1}
    assert len(matrices - moved) < 0.05 * len(matrices)
    assert lines[0]["lr"] == STAGES[stage].lr


# ---- distribution ----------------------------------------------------------------------------------------------


def test_one_two_and_four_processes_do_the_same(files, tmp_path):
    """Losses and gradient norms over several steps of the same global batches; with one sample at a time, some processes
    have pictures to paint, some to look at, and some none."""
    mix = [f"{files[name]}:{weight}" for name, weight in (("generation", 2), ("understanding", 2), ("text_only", 4))]
    common = ("--init", TINY, "--steps", 3, "--batch", 4, "--micro-batch", 1, "--lr", 1e-5, "--data", *mix)
    one = succeed(tmp_path / "1", *common)
    two = succeed(tmp_path / "2", *common, ranks=2)
    four = succeed(tmp_path / "4", *common, "--replicas", 2, ranks=4)
    for a, b, c in zip(one, two, four):
        for name in ("loss", "text", "image", "gradient_norm"):
            close = pytest.approx(a[name], rel=1e-5, abs=1e-6)
            assert b[name] == close and c[name] == close, name
    assert len(one) == len(two) == len(four) == 3


def test_a_step_of_many_parts_runs_where_few_files_may_be_open(files, tmp_path):
    """Each tensor that a worker hands over is an open file: here 60 parts of six, and 128 files to begin with."""
    limits = 128, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    done = run(tmp_path, "--init", TINY, "--data", files["text_only"], "--batch", 60, "--micro-batch", 1, "--steps", 2,
               timeout=120, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits))
    assert done.returncode == 0, done.stderr[-3000:]


# ---- nothing lost ----------------------------------------------------------------------------------------------


def test_kills_leave_no_trace_in_the_weights(files, tmp_path, request):
    """All processes, or one, killed at random moments, inside saves too, and started again until the end: the final weights
    are those of the run that nobody disturbed, bit for bit, and each step was counted once."""
    common = ("--init", TINY, "--steps", 12, "--batch", 4, "--save-every", 2, "--lr", 1e-4,
              "--data", files["generation"], files["understanding"], files["text_only"])
    succeed(tmp_path / "whole", *common, ranks=2)
    dice, killed = random.Random(0), tmp_path / "killed"

    def newest() -> str:
        return max((path.name for path in killed.glob("cheers-*")), default="")

    for kill in range(request.config.getoption("--kills")):
        process = subprocess.Popen(command(tmp_path / "killed", *common, ranks=2, restarts=3), cwd=ROOT, start_new_session=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begun, inside = newest(), kill % 2 == 0  # inside a save, or else some time after one
        while process.poll() is None and not ((killed / ".partial").exists() if inside else newest() > begun):
            time.sleep(0.002)
        time.sleep(0 if inside else dice.uniform(0, 1.5))
        workers = subprocess.run(["pgrep", "-f", f"train.py.*{tmp_path / 'killed'}"], capture_output=True, text=True).stdout.split()
        if dice.random() < 0.5:  # one worker: torchrun starts all of them again
            for pid in [pid for pid in workers if int(pid) != process.pid][:1]:
                os.kill(int(pid), signal.SIGKILL)
            time.sleep(3)
        for pid in [str(process.pid), *workers]:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass
        subprocess.run(["pkill", "-9", "-f", f"train.py.*{tmp_path / 'killed'}"])
        process.wait()
    lines = succeed(tmp_path / "killed", *common, ranks=2)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["positions"] for line in lines] == [line["positions"] for line in metrics(tmp_path / "whole")]


@pytest.fixture(scope="session")
def finished(files, tmp_path_factory):
    """A run of six steps with checkpoints at 2, 4 and 6, and its arguments."""
    out = tmp_path_factory.mktemp("finished") / "run"
    common = ("--init", TINY, "--batch", 2, "--save-every", 2, "--keep", 3, "--lr", 1e-4,
              "--data", files["generation"], files["understanding"])
    succeed(out, *common, "--steps", 6)
    return out, common


def test_a_damaged_checkpoint_is_set_aside_and_the_newest_good_one_taken(finished, tmp_path):
    out, common = finished
    good = tmp_path / "run"
    subprocess.run(["cp", "-r", out, good], check=True)
    newest, second = (next((good / name).glob("*.safetensors")) for name in ("cheers-0000006", "cheers-0000004"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # a flipped bit
    newest.write_bytes(content)
    second.write_bytes(second.read_bytes()[:-100])
    done = run(good, *common, "--steps", 6)
    assert done.returncode == 0, done.stderr
    assert "cheers-0000006 is damaged" in done.stderr and "cheers-0000004 is damaged" in done.stderr
    assert same(weights(out), weights(good)) and len(list(good.glob("damaged-*"))) == 2


def test_a_changed_manifest_and_another_run_are_not_gone_on_from(finished, tmp_path):
    out, common = finished
    other = tmp_path / "run"
    subprocess.run(["cp", "-r", out, other], check=True)
    for changed, what in (((*common, "--seed", 5), "seed"), ((*common[:-2], *common[:-3:-1]), "data")):  # in another order
        done = run(other, *changed, "--steps", 6)
        assert done.returncode != 0 and f"is of a run with another {what}" in done.stderr and "Traceback" not in done.stderr
    manifest = other / "cheers-0000006" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 6', '"step": 5'))
    done = run(other, *common, "--steps", 6)
    assert done.returncode == 0 and "the manifest was changed" in done.stderr
    assert same(weights(out), weights(other))


def test_a_full_disk_stops_the_run_and_spares_what_is_good(finished, tmp_path):
    out, common = finished
    full = tmp_path / "run"
    subprocess.run(["cp", "-r", out, full], check=True)


    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000))

    done = run(full, *common, "--steps", 8, preexec_fn=small_files)
    assert done.returncode != 0 and "cannot save" in done.stderr and "cheers-0000008" in done.stderr and "Traceback" not in done.stderr
    assert {path.name for path in full.glob("cheers-*")} == {path.name for path in out.glob("cheers-*")}
    succeed(full, *common, "--steps", 8)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_request_to_stop_finishes_the_step_and_saves(files, tmp_path, ranks):
    common = ("--init", TINY, "--batch", 2, "--steps", 500, "--data", files["generation"])
    process = subprocess.Popen(command(tmp_path, *common, ranks=ranks), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "metrics.jsonl").exists():
        time.sleep(0.1)
    if ranks == 1:
        assert "another run is writing to" in run(tmp_path, *common).stderr
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (143 if ranks == 1 else 1) and "stopped and saved after step" in said  # 1 is torchrun's
    (saved,) = tmp_path.glob("cheers-*")
    assert int(saved.name[-7:]) == metrics(tmp_path)[-1]["step"]


def test_another_number_of_processes_goes_on_with_the_same_samples(finished, tmp_path):
    out, common = finished
    other = tmp_path / "run"
    subprocess.run(["cp", "-r", out, other], check=True)
    for late in ("cheers-0000004", "cheers-0000006"):
        subprocess.run(["rm", "-r", other / late], check=True)
    shutil.copytree(other / "cheers-0000002", other / "cheers-of-yesterday-9")  # no checkpoint of the run
    lines, alone = succeed(other, *common, "--steps", 6, ranks=2), metrics(out)
    assert [line["positions"] for line in lines] == [line["positions"] for line in alone]
    for a, b in zip(alone, lines):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
    assert {path.name for path in other.glob("cheers-*")} == {path.name for path in out.glob("cheers-*")} | {"cheers-of-yesterday-9"}


def test_half_written_lines_and_steps_that_come_again_are_dropped(tmp_path):
    lines = [json.dumps({"phase": phase, "step": step}) for phase, step in (("vae", 9), ("cheers", 1), ("cheers", 2), ("cheers", 3))]
    (log := tmp_path / "log.jsonl").write_text("\n".join([*lines[:2], lines[1][:9] + lines[2], *lines[2:], '{"note": 1}', lines[0][:-1]]))
    forget(log, "cheers", 2)
    assert log.read_text().splitlines() == [*lines[:3], '{"note": 1}']


def test_any_checkpoint_can_be_exported(finished, tmp_path):
    assert subprocess.run([*command("x")[:2], "--export", finished[0]], cwd=ROOT, capture_output=True).returncode == 2  # --out
    out, _ = finished
    done = run(tmp_path, "--export", out / "cheers-0000006")
    assert done.returncode == 0, done.stderr
    assert same(load_file(tmp_path / "model.safetensors"), weights(out))
    assert Cheers.from_pretrained(tmp_path).tokenizer


@pytest.mark.parametrize("parts", ["qwen.", "head."])  # the head has no part in text
def test_a_batch_with_nothing_to_learn_is_no_end(tmp_path, parts):
    (tmp_path / "no.jsonl").write_text('{"conversations": [{"from": "human", "value": "hello"}]}\n{half\n')
    common = ("--init", TINY, "--parts", parts, "--batch", 1, "--steps", 4, "--skip-limit", 1)
    succeed(tmp_path / "run", *common, "--data", tmp_path / "no.jsonl")


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_and_recomputed_blocks_compute_the_same(tiny):
    """--compile, and activation checkpointing around it."""
    mix = Mixture([ToySource(make, 32) for make in data.TOY_MIX], list(data.TOY_MIX.values()), 4, 4, 0, tiny.tokenizer, tiny.config, 9)
    batch, norms = mix[8].batches[0], []
    for recompute, compiled in ((False, False), (True, True)):
        model = Cheers.from_pretrained(TINY, device="cpu", dtype=torch.float32)
        freeze(model, TOY)
        wrap_blocks(model, recompute, compiled)
        torch._dynamo.utils.counters.clear()
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):  # all kinds of blocks, not the first few
            model.loss(batch).total.backward()
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
        assert bool(torch._dynamo.utils.counters["stats"]) == compiled  # something was compiled
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-4, atol=0)


def test_damaged_lines_are_skipped_counted_and_listed_and_many_of_them_stop_the_run(files, tmp_path):
    lines = files["generation"].read_text().splitlines()
    content = json.loads(lines[0]) | {"image": "nowhere.png"}
    (tmp_path / "some.jsonl").write_text("\n".join(["", *lines[1:], "", "{half a line", json.dumps(content)]) + "\n\n")
    common = ("--init", TINY, "--batch", 41, "--steps", 1, "--images", files["generation"].parent, "--data", tmp_path / "some.jsonl")
    lines = succeed(tmp_path / "a", *common, "--skip-limit", 0.2)
    listed = [json.loads(line) for line in (tmp_path / "a" / "skipped.jsonl").read_text().splitlines()]
    assert {entry["line"] for entry in listed} == {39, 40} and "nowhere.png" in str(listed)
    assert lines[-1]["skipped"] == {str(tmp_path / "some.jsonl"): 2}
    done = run(tmp_path / "b", *common)
    assert done.returncode != 0 and "are damaged" in done.stderr and "Traceback" not in done.stderr


# ---- the tiny model --------------------------------------------------------------------------------------------


def test_training_from_nothing(tmp_path):
    lines = succeed(tmp_path, "--vae-steps", 4, "--batch", 4, "--steps", 2)
    assert {line["phase"] for line in lines} == {"vae", "cheers"}
    assert all(line["loss"] > 0 for line in lines if "loss" in line)
    assert list(tmp_path.glob("samples-*.png")) and Cheers.from_pretrained(tmp_path / "model").tokenizer


# ---- knowing before paying -------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [("",), STAGES[1].parts, ("head.",)])
def test_the_plan_counts_what_torch_counts(tiny, parts, monkeypatch):
    """FLOP of samples of each kind, with frozen parts and without; what is computed twice to save memory counts once."""
    monkeypatch.setattr(cheers, "checkpoint", lambda function, *inputs, **_: function(*inputs))
    recipe = replace(TOY, parts=parts)
    with torch.device("meta"):
        planned = Cheers(tiny.config)
    real = Cheers.from_pretrained(TINY, device="cpu", dtype=torch.float32)
    for model in (planned, real):
        freeze(model, recipe)
    for k, make in enumerate((data.generation, data.understanding, data.editing, data.text_only)):
        rng = np.random.default_rng(k)
        sample = make_sample(*make(rng, 2, 32), tiny.tokenizer, tiny.config, rng)
        batch = collate([sample], tiny.config)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the counter knows no CPU kernel
            if (loss := real.loss(batch).total).requires_grad:  # questions teach the head nothing
                loss.backward()
        painted, supervised = int((batch.t < 1).sum()), int((batch.labels[:, 1:] >= 0).sum())
        assert cost(planned, batch.ids.shape[1], len(sample.pixels), painted, supervised)[0] == counter.get_total_flops()


def test_the_plan_knows_every_byte_of_a_process(tiny, tmp_path):
    """Against what FSDP2 really gives to process 0 of 2."""
    script = tmp_path / "shards.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from cheers import Cheers
from parallel import RANK, shard, start_process, training_state
from tiny import toy_groups
model = Cheers.from_pretrained({str(TINY)!r}, "cpu", torch.float32)
model.vae.requires_grad_(False)
shard(model, start_process(), torch.float32, 1)
trained = [p for p in model.parameters() if p.requires_grad]
groups, matrices = toy_groups(dict((n, p) for n, p in model.named_parameters() if p.requires_grad))
training_state(model, optimizers := [torch.optim.AdamW(groups), torch.optim.Muon([{{"params": matrices}}])])
local = lambda x: 4 * (x.to_local() if hasattr(x, "to_local") else x).numel()
if RANK == 0:
    print(sum(map(local, model.parameters())), sum(map(local, trained)),
          sum(local(x) for optimizer in optimizers for moments in optimizer.state.values() for x in moments.values()))
""")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(launch, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.device("meta"):
        model = Cheers(tiny.config)
    freeze(model, TOY)
    matrices = toy_groups(dict(model.named_parameters()))[1]
    assert list(bytes_per_process(model, 2, matrices).values()) == [int(word) for word in done.stdout.split()]


def test_the_plan_prints(tmp_path):
    done = run(tmp_path, "--stage", 2, "--plan", "--gpus", 128)
    assert done.returncode == 0, done.stderr
    for wanted in ("2,556,099,383 parameters", "exactly", "an estimate", "TFLOP per sample", "samples/s", "a checkpoint"):
        assert wanted in done.stdout


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--steps", "0"], "--steps must be at least 1"),
        (["--lr", "0"], "--lr must be positive"),
        (["--init", "nowhere"], "there is no folder nowhere"),
        (["--out", "/proc/no"], "cannot write"),
        (["--stepps", "3"], "unrecognized arguments"),
        (["--stage", "2"], "--stage needs samples"),
        (["--stage", "2", "--plan", "--gpus", "7"], "must be a multiple of the 7 processes"),
        (["--parts", "head.", "hed."], "has a name that begins with 'hed.'"),
        (["--images", "nowhere"], "there is no folder nowhere"),
        (["--init", TINY, "--data", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_bad_input_gets_one_sentence(arguments, sentence, tmp_path):
    done = run(tmp_path, *arguments)
    assert done.returncode != 0 and sentence in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.json"))  # nothing that a later run could take for its own
