"""Chapter 5: the whole model: sequences, mask, loss, and checkpoints in the official layout."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cheers import IGNORE, IGNORED, INDEX, Batch, Cheers, CheersConfig, attention_mask, official_name
from conftest import GOLDEN, ROOT, close, rows
from data import expand
from hub_server import HubServer


# ---- sequences


def test_text_is_causal_and_pictures_are_whole():
    mask = attention_mask(torch.tensor([[0, 1, 1, 0, 1, 1, 0]]).bool())[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1, 1],
    ]


def test_hidden_states_and_logits_match_the_release(golden, golden_model):
    g = golden.tensors
    ids = torch.tensor([expand(row, [4], golden_model.config)[0] for row in rows(g["lm.input_ids"])])
    with torch.no_grad():
        t = g["lm.t"][:, None, None, None]
        z_t = t * golden_model.encode_image(g["pixels"]) + (1 - t) * g["lm.noise"]
        tokens, _ = golden_model.tokenize_image(z_t)
        x = golden_model.embed(ids, tokens)
        hidden = golden_model.qwen(x, torch.arange(16).expand(2, 16), attention_mask(golden_model.is_image(ids)))
        logits = golden_model.qwen.logits(hidden)[:, -4:]
    close(hidden[0], g["lm.hidden"][0])
    close(hidden[1, :14], g["lm.hidden"][1, :14])
    close(logits[0], g["lm.logits_last4"][0])
    close(logits[1, :2], g["lm.logits_last4"][1, :2])


def golden_batch(golden, model) -> Batch:
    g = golden.tensors
    pairs = [expand(i, [4], model.config, l) for i, l in zip(rows(g["loss.input_ids"]), rows(g["loss.labels"]))]
    ids, labels = (torch.tensor(values) for values in zip(*pairs))
    never = (labels == model.config.special.image_end) | (labels == model.config.special.image_gen)
    return Batch(ids, labels.masked_fill(never, IGNORE), g["pixels"], g["loss.noise"], g["loss.t"])


def test_the_losses_match_the_release(golden, golden_model):
    g = golden.tensors
    loss = golden_model.loss(golden_batch(golden, golden_model))
    close(loss.text, g["loss.text"])
    close(loss.image, g["loss.image"])
    close(loss.total, g["loss.total"])


def test_the_predicted_velocity_matches_the_release(golden, golden_model):
    g, batch = golden.tensors, golden_batch(golden, golden_model)
    seen = {}
    hook = golden_model.head.register_forward_hook(lambda module, inputs, outputs: seen.update(velocity=outputs[0]))
    golden_model.loss(batch)
    hook.remove()
    close(seen["velocity"], g["loss.velocity"])


def test_a_padded_row_has_the_loss_of_the_row_alone(golden, golden_model):
    batch = golden_batch(golden, golden_model)
    padded = Batch(
        torch.nn.functional.pad(batch.ids, (0, 5)), torch.nn.functional.pad(batch.labels, (0, 5), value=IGNORE),
        batch.pixels, batch.noise, batch.t,
    )
    close(golden_model.loss(padded).total, golden_model.loss(batch).total, 1e-5)


def test_every_trained_part_gets_a_gradient_and_the_frozen_vae_none(golden, golden_folder):
    model = Cheers.from_pretrained(golden_folder, device="cpu")
    model.loss(golden_batch(golden, model)).total.backward()
    without = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is None}
    assert without == {"vae"}
    assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith("vae."))


# ---- the official layout


def official(model: Cheers) -> dict[str, torch.Tensor]:
    return {official_name(name): tensor for name, tensor in model.state_dict().items()}


def test_the_default_configuration_is_the_official_checkpoint():
    index = json.loads((GOLDEN / "official_index.json").read_text())
    with torch.device("meta"):
        model = Cheers(CheersConfig.from_json(json.loads((GOLDEN / "official_config.json").read_text())))
    assert model.config == CheersConfig()
    tensors = official(model)
    left_over = set(index["weight_map"]) - set(tensors)
    assert not set(tensors) - set(index["weight_map"])
    assert all(re.fullmatch(IGNORED, name) for name in left_over)
    assert len(tensors) + len(left_over) == 1321
    # bytes: the pooling head of SigLIP2 (probe, attention, LayerNorm, MLP), the copy of the embedding, two counters
    width, inner = model.config.siglip.hidden_size, model.config.siglip.intermediate_size
    pooling = width + (3 * width + 1) * width + 2 * width + (width + 1) * width + 2 * width + 2 * width * inner + inner + width
    assert len(left_over) == 11 + 1 + 2
    total = 2 * (sum(t.numel() for t in tensors.values()) + pooling + model.qwen.embed_tokens.weight.numel()) + 2 * 2
    assert total == index["metadata"]["total_size"] == 5_609_423_890


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 300_000])
def test_what_is_saved_opens_bit_for_bit(golden_folder, tmp_path, dtype, shard_bytes):
    model = Cheers.from_pretrained(golden_folder, device="cpu", dtype=dtype)
    model.generation = {"steps": 12, "guidance": 2.0, "shift": 1.0}
    (tmp_path / "model-00001-of-00099.safetensors").write_bytes(b"stale")
    (tmp_path / ".partial-killed").mkdir()
    model.save_pretrained(tmp_path, shard_bytes)
    assert (tmp_path / INDEX).exists() == (shard_bytes == 300_000)
    again = Cheers.from_pretrained(tmp_path, device="cpu")
    assert again.config == model.config and again.generation == model.generation and again.dtype == dtype
    for (name, before), after in zip(model.state_dict().items(), again.state_dict().values()):
        assert torch.equal(before, after), name
    assert not list(tmp_path.glob(".*")) and not (tmp_path / "model-00001-of-00099.safetensors").exists()
    stored = {name for file in tmp_path.glob("*.safetensors") for name in load_file(file)}
    assert "lm_head.weight" in stored


def test_problems_are_all_named_in_one_error(golden_folder, tmp_path):
    tensors = load_file(golden_folder / "model.safetensors")
    del tensors["model.hi_gate.layer_norm.bias"]
    tensors["model.stranger"] = torch.zeros(1)
    tensors["model.language_model.norm.weight"] = torch.ones(65)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((golden_folder / "config.json").read_text())
    with pytest.raises(ValueError) as error:
        Cheers.from_pretrained(tmp_path, device="cpu")
    for text in ("missing model.hi_gate.layer_norm.bias", "unknown model.stranger", "norm.weight has shape [65] instead of [64]"):
        assert text in str(error.value)


def test_the_ignored_tensors_may_be_there(golden_folder, tmp_path):
    tensors = load_file(golden_folder / "model.safetensors")
    tensors["model.vision_representation.head.probe"] = torch.zeros(1, 1, 48)
    tensors["model.vae_model.bn.num_batches_tracked"] = torch.tensor(0)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((golden_folder / "config.json").read_text())
    Cheers.from_pretrained(tmp_path, device="cpu")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_loading_keeps_memory_near_the_size_of_the_weights(golden_folder, tmp_path):
    wide = json.loads((golden_folder / "config.json").read_text())
    wide["text_config"] |= {"intermediate_size": 6_000, "num_hidden_layers": 60}  # 276 MB in 180 matrices
    config = CheersConfig.from_json(wide)
    model = Cheers(config)
    model.initialise()
    model.save_pretrained(tmp_path)
    del model
    script = (
        "import re, sys; from cheers import Cheers;"  # not ru_maxrss, which begins at the parent's
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]);"
        "before = peak(); model = Cheers.from_pretrained(sys.argv[1], device='cpu');"
        "print((peak() - before) * 1024, sum(t.nbytes for t in model.state_dict().values()))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    grown, size = map(int, subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split())
    # 50 tensors at a time are held twice: mapped from the file while they are copied
    assert grown < 1.4 * size
    assert size > 250e6


# ---- fresh starts


def component_files(model: Cheers, folder) -> None:
    """Qwen2.5, SigLIP2 and FLUX.2 files as their authors name the tensors."""
    state = model.state_dict()
    part = lambda prefix, there: {there + n.removeprefix(prefix): t.clone() for n, t in state.items() if n.startswith(prefix)}
    for name in ("qwen", "siglip"):
        (folder / name).mkdir()
    save_file(part("qwen.", "model."), folder / "qwen" / "model.safetensors")
    extra = {"logit_scale": torch.zeros(1), "vision_model.head.probe": torch.zeros(1), "text_model.final.bias": torch.zeros(1)}
    save_file(part("siglip.", "vision_model.") | extra, folder / "siglip" / "model.safetensors")
    save_file(part("vae.", "") | {"bn.num_batches_tracked": torch.tensor(0)}, folder / "ae.safetensors")


def test_a_fresh_start_from_the_three_components(golden_model, tmp_path):
    component_files(golden_model, tmp_path)
    torch.manual_seed(0)
    parts = (tmp_path / "qwen", tmp_path / "siglip", tmp_path / "ae.safetensors")
    fresh = Cheers.from_components(*parts, config=golden_model.config, device="cpu")
    old, new = golden_model.state_dict(), fresh.state_dict()
    for name in new:
        assert new[name].device.type == "cpu" and new[name].isfinite().all(), name
        if name.startswith(("vae.", "siglip.", "qwen.")):
            assert torch.equal(new[name], old[name]), name
        elif name.startswith("pixel_decoder."):
            assert torch.equal(new[name], old[name.replace("pixel_decoder.", "vae.")]), name
    assert fresh.head.gate.gate[-1].weight.abs().max() == 0  # AdaLN-Zero and the gate start closed
    tokens, details = fresh.tokenize_image(torch.randn(1, 32, 4, 4))
    assert fresh.velocity(tokens, torch.zeros(1), details).isfinite().all()


def test_a_fresh_start_names_what_is_wrong(golden_model, tmp_path):
    component_files(golden_model, tmp_path)
    tensors = load_file(tmp_path / "ae.safetensors")
    del tensors["encoder.conv_in.bias"]
    save_file(tensors, tmp_path / "ae.safetensors")
    with pytest.raises(ValueError, match="missing encoder.conv_in.bias"):
        Cheers.from_components(
            tmp_path / "qwen", tmp_path / "siglip", tmp_path / "ae.safetensors", config=golden_model.config, device="cpu"
        )


# ---- the hub


def open_from_hub(server: HubServer | None, home, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """A process of its own, because huggingface-hub reads its settings when it is imported."""
    script = (
        "import sys; from cheers import Cheers\n"
        "try: print(len(Cheers.from_pretrained('ai9stars/Cheers', device='cpu', revision=(sys.argv + [None])[1]).state_dict()))\n"
        "except (FileNotFoundError, ValueError) as error: sys.exit(f'{type(error).__name__}: {error}')"
    )
    url = server.url if server else "http://127.0.0.1:9"
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | settings | environment, capture_output=True, text=True)


def test_a_hub_name_is_fetched_once_and_then_works_offline(golden_folder, tmp_path):
    with HubServer(golden_folder, name="ai9stars/Cheers") as server:
        first = open_from_hub(server, tmp_path)
        assert first.returncode == 0, first.stderr
        assert "%" in first.stderr  # the hub's progress bars
        fetched = sum(method == "GET" and "resolve" in path for method, path, _ in server.requests)
        assert fetched == 2
        assert open_from_hub(server, tmp_path).returncode == 0
        assert sum(method == "GET" and "resolve" in path for method, path, _ in server.requests) == fetched
        wrong = open_from_hub(server, tmp_path, "no-such-revision")
        assert wrong.returncode == 1 and "FileNotFoundError: ai9stars/Cheers" in wrong.stderr
    assert open_from_hub(None, tmp_path, HF_HUB_OFFLINE="1").returncode == 0
    nothing = open_from_hub(None, tmp_path / "empty", HF_HUB_OFFLINE="1")
    assert nothing.returncode == 1 and "no folder here and could not be fetched" in nothing.stderr


def test_an_interrupted_download_ends_in_the_right_bytes_or_a_clear_sentence(golden_folder, tmp_path):
    with HubServer(golden_folder, name="ai9stars/Cheers") as server:
        server.cut_after("model.safetensors", 100_000)
        assert open_from_hub(server, tmp_path / "once").returncode == 0
        server.cut_after("model.safetensors", 100_000, times=100)
        cut = open_from_hub(server, tmp_path / "always")
        assert cut.returncode == 1 and "FileNotFoundError: ai9stars/Cheers" in cut.stderr
        server.cut_after("model.safetensors", 100_000, times=0)
        assert open_from_hub(server, tmp_path / "always").returncode == 0


# ---- bad checkpoints


@pytest.fixture
def copy(golden_folder, tmp_path):
    for file in golden_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def refused(folder, kind: type, text: str) -> None:
    with pytest.raises(kind, match=text):
        Cheers.from_pretrained(folder, device="cpu")


def test_missing_and_truncated_weights_are_named(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(copy, ValueError, "model.safetensors is damaged")
    weights.write_bytes(b"not safetensors at all")
    refused(copy, ValueError, "model.safetensors is damaged or not a safetensors file")
    weights.unlink()
    refused(copy, FileNotFoundError, "lacks model.safetensors")


def test_a_pickle_is_never_opened(copy):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    refused(copy, FileNotFoundError, "pickles, which are never opened")


def test_a_shard_missing_from_the_index_is_named(golden_model, tmp_path):
    golden_model.save_pretrained(tmp_path, shard_bytes=300_000)
    first = sorted(tmp_path.glob("model-*.safetensors"))[0]
    first.unlink()
    refused(tmp_path, FileNotFoundError, f"lacks {first.name}")


def test_a_damaged_configuration_is_named(copy):
    (copy / "config.json").write_text("{ not json")
    refused(copy, ValueError, "config.json is not valid JSON")
    (copy / "config.json").unlink()
    refused(copy, FileNotFoundError, "config.json is missing")


@pytest.mark.parametrize(
    "key, value, sentence",
    [
        ("text_config", None, "stands where a section of sizes should"),
        ("text_config", {"hidden_size": "big"}, "hidden_size is 'big'"),
        ("text_config", {"num_attention_heads": 5}, "do not divide"),
        ("head_depths", 5, "head_depths is 5"),
        ("vision_representation_config", {"patch_size": 8}, "SigLIP's patch 8 is not the VAE's factor 16"),
    ],
)
def test_impossible_sizes_are_named(copy, key, value, sentence):
    config = json.loads((copy / "config.json").read_text())
    config[key] = config.get(key, {}) | value if isinstance(value, dict) else value
    (copy / "config.json").write_text(json.dumps(config))
    refused(copy, ValueError, sentence)


def test_a_folder_that_is_not_there(tmp_path):
    refused(tmp_path / "nowhere", FileNotFoundError, "there is no folder")
