"""Loading and saving: strict names, shapes and dtypes, and nothing changed on the way round."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from qwenkit.config import FAMILY, ModelConfig
from qwenkit.errors import CheckpointError, ConfigError, FormatError, QwenkitError
from qwenkit.io.safetensors import Checkpoint, save_file
from qwenkit.model import load
from qwenkit.model.batch import Batch
from qwenkit.model.load import init_model, load_model, save_model
from qwenkit.model.weights import DenseWeights
from qwenkit.ops import Packed

CONFIG = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
    torch_dtype="float32",
)
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(init_model(CONFIG, seed=3), tmp_path)
    return tmp_path


def _tensors(path: Path) -> dict[str, Tensor]:
    with Checkpoint.open(path) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint}


def _rewrite(path: Path, **changes: Tensor | None) -> None:
    tensors: dict[str, Tensor | None] = {**_tensors(path), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, path / "model.safetensors")


def test_round_trip_and_transformers_reads_it(saved: Path) -> None:
    first, second = init_model(CONFIG, seed=3), load_model(saved)
    for (name, a), (other, b) in zip(
        first.named_parameters(), second.named_parameters(), strict=True
    ):
        assert name == other and torch.equal(a, b)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(saved)
    ids = list(range(20))
    with torch.no_grad():
        want = oracle(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(second(Batch.from_sequences([ids])), want, atol=1e-5, rtol=0)


def test_shards(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_SHARD_BYTES", 20_000)
    model = load_model(saved)
    out = tmp_path / "sharded"
    save_model(model, out)
    assert len(list(out.glob("model-*.safetensors"))) > 1
    again = load_model(out)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))  # noqa: B905


@pytest.mark.parametrize("native", [True, False])
def test_dtypes(saved: Path, monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(load.ops, "answers_in_bfloat16", lambda device: native)
    assert load_model(saved).dtype == torch.float32
    assert load_model(saved, "bf16").dtype == torch.bfloat16
    config = json.loads((saved / "config.json").read_text())
    for own in ("bfloat16", "float16"):
        (saved / "config.json").write_text(json.dumps({**config, "torch_dtype": own}))
        assert load_model(saved).dtype == (torch.bfloat16 if native else torch.float32)
    with pytest.raises(ConfigError, match="int4"):
        load_model(saved, "int4")


def test_missing_extra_and_misshapen_are_named(saved: Path) -> None:
    good = _tensors(saved)
    cases: list[tuple[dict[str, Tensor | None], str]] = [
        ({Q: None}, f"missing {Q}"),
        ({"model.extra": torch.zeros(1)}, "unexpected model.extra"),
        ({Q: torch.zeros(32, 31)}, rf"{Q} is \[32, 31\], expected \[32, 32\]"),
        ({Q: good[Q].to(torch.int8)}, f"{Q} is int8"),
        ({"lm_head.weight": torch.zeros(96, 32)}, "lm_head.weight differs"),
    ]
    for change, named in cases:
        save_file(good, saved / "model.safetensors")
        _rewrite(saved, **change)
        with pytest.raises(CheckpointError, match=named):
            load_model(saved)


def test_a_tied_head_may_be_stored_twice(saved: Path) -> None:
    embedding = _tensors(saved)["model.embed_tokens.weight"]
    _rewrite(saved, **{"lm_head.weight": embedding, "model.rotary_emb.inv_freq": torch.ones(4)})
    assert load_model(saved).lm_head is None


def test_config_that_does_not_fit_names_both_shapes(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 4}))
    with pytest.raises(CheckpointError, match=r"k_proj.*\[16.*expected \[32"):
        load_model(saved)


def test_infinite_weights_are_named_on_request(saved: Path) -> None:
    bad = _tensors(saved)[Q].clone()
    bad[0, 0] = float("inf")
    _rewrite(saved, **{Q: bad})
    load_model(saved)
    with pytest.raises(CheckpointError, match=Q):
        load_model(saved, check_finite=True)


def test_truncated_at_every_length(saved: Path) -> None:
    file = saved / "model.safetensors"
    data = file.read_bytes()
    for length in [*range(200), *range(200, len(data), 997), len(data) - 1]:
        file.write_bytes(data[:length])
        with pytest.raises(QwenkitError):
            load_model(saved)


def test_no_weights_pickles_and_vision(tmp_path: Path, saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(FormatError):
        load_model(saved)
    (saved / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(FormatError, match="safetensors"):
        load_model(saved)
    with pytest.raises(ConfigError, match="vision"):
        load.empty_model(FAMILY["Qwen2-VL-2B-Instruct"].config)


def test_K160_code_beside_the_weights_is_never_run(saved: Path) -> None:
    values = json.loads((saved / "config.json").read_text())
    values["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    values["trust_remote_code"] = True
    (saved / "config.json").write_text(json.dumps(values))
    code = f"open({str(saved / 'ran')!r}, 'w')\n"
    for name in ("modeling_evil.py", "configuration_evil.py", "__init__.py"):
        (saved / name).write_text(code)
    load_model(saved)
    assert not (saved / "ran").exists() and "modeling_evil" not in sys.modules


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "unreadable"])
def test_K174_weights_that_are_no_file(
    saved: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved / "model.safetensors"
    if kind == "unreadable":
        file.chmod(0)
        if os.access(file, os.R_OK):  # root reads everything: let the system call refuse
            opened = os.open

            def refuse(path: str, *args: Any, **more: Any) -> int:
                if Path(path) == file:
                    raise PermissionError(13, "Permission denied", path)
                return opened(path, *args, **more)

            monkeypatch.setattr(os, "open", refuse)
    else:
        file.unlink()
        {"pipe": os.mkfifo, "folder": os.mkdir}.get(kind, lambda f: f.symlink_to("/dev/zero"))(file)
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        load_model(saved)


@pytest.mark.parametrize("change", ["replaced", "truncated"])
def test_K171_a_file_that_changes_while_it_is_loaded(
    saved: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, read, count = saved / "model.safetensors", DenseWeights.read, 0

    def late(self: DenseWeights, name: str, rows: slice | None = None) -> Tensor | Packed:
        nonlocal count
        count += 1
        if count == 5 and change == "replaced":
            os.replace(shutil.copy(file, saved / "other"), file)
        elif count == 5:
            os.truncate(file, 2000)
        return read(self, name, rows)

    monkeypatch.setattr(DenseWeights, "read", late)
    with pytest.raises(FormatError, match="replaced or changed"):
        load_model(saved)


def test_building_a_72b_takes_no_memory() -> None:
    config = FAMILY["Qwen2.5-72B-Instruct"].config
    model = load.empty_model(config)
    assert sum(p.numel() for p in model.parameters()) == config.num_parameters


def test_init_is_a_function_of_the_seed() -> None:
    a, b, c = (init_model(CONFIG, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.model.embed_tokens.weight, c.model.embed_tokens.weight)
    assert 0.015 < float(a.model.embed_tokens.weight.detach().std()) < 0.025
