"""Quantising while loading: which weights are packed, what stays, and that answers survive it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qwenkit import ops
from qwenkit.config import ModelConfig
from qwenkit.errors import CheckpointError, OptionError
from qwenkit.eval.run import held_out
from qwenkit.io.hub import ASSETS
from qwenkit.llm import LLM
from qwenkit.model import packing
from qwenkit.model.batch import Batch
from qwenkit.model.linear import Linear, QuantEmbedding, QuantLinear, is_packed
from qwenkit.model.load import init_model, load_model, save_model
from qwenkit.model.qwen import Qwen
from qwenkit.model.transforms import prepare
from qwenkit.prompt.chat import ChatTemplate
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.tasks.base import LANGUAGES
from qwenkit.tasks.synth import TASKS


def dense_twin(model: Qwen) -> Qwen:
    """The same model with plain float32 weights: every packed one de-quantised."""
    twin = init_model(model.config)
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, (QuantLinear, QuantEmbedding)):
            state[f"{name}.weight"] = ops.dequantize(module.packed)
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    twin.load_state_dict(state)
    return twin.eval()


def greedy(model: Qwen, ids: list[int], count: int) -> list[int]:
    out = list(ids)
    with torch.no_grad():
        for _ in range(count):
            out.append(int(model(Batch.from_sequences([out]))[-1].argmax()))
    return out


@pytest.fixture(params=["untied", "tied", "moe"])
def saved(request: pytest.FixtureRequest, tmp_path: Path, configs: dict[str, ModelConfig]) -> Path:
    save_model(init_model(configs[request.param], seed=3), tmp_path, torch.bfloat16)
    return tmp_path


@pytest.mark.parametrize("quantize", ["int4", "int8"])
def test_every_matrix_is_packed_and_nothing_else(saved: Path, quantize: str) -> None:
    model = load_model(saved, "float32", quantize=quantize)
    assert is_packed(model) and model.dtype == torch.float32
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            assert name.endswith((".gate", ".shared_expert_gate"))
        if isinstance(module, QuantLinear):
            assert module.packed.format == ("int8" if name == "lm_head" else quantize)
            assert module.dense().shape == (module.out_features, module.in_features)
    tied = model.config.tie_word_embeddings
    embedding = model.model.embed_tokens
    assert isinstance(embedding, QuantEmbedding)
    assert embedding.packed.format == ("int8" if tied else "bf16")
    assert tied == (getattr(model.lm_head, "packed", None) is embedding.packed)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_greedy_tokens_are_those_of_the_dequantised_model(saved: Path) -> None:
    model = load_model(saved, "float32", quantize="int8")
    twin = dense_twin(model)
    for start in ([1, 2, 3], [90], list(range(40))):
        assert greedy(model, start, 12) == greedy(twin, start, 12)


def test_a_16_bit_embedding_is_kept_as_it_is(
    tmp_path: Path, configs: dict[str, ModelConfig]
) -> None:
    save_model(init_model(configs["untied"], seed=3), tmp_path, torch.bfloat16)
    wide = load_model(tmp_path, "float32", quantize="int4").model.embed_tokens
    same = load_model(tmp_path, "bfloat16", quantize="int4").model.embed_tokens
    ids = torch.tensor([0, 95, 95, 7])
    assert wide(ids).dtype == torch.float32
    assert torch.equal(wide(ids), same(ids).float())


def test_moving_keeps_the_packed_dtypes(tmp_path: Path, configs: dict[str, ModelConfig]) -> None:
    save_model(init_model(configs["untied"], seed=3), tmp_path, torch.bfloat16)
    model = load_model(tmp_path, "float32", quantize="int4").to(torch.bfloat16)
    q_proj = model.model.layers[0].self_attn.q_proj
    assert q_proj.packed.tensors["scales"].dtype == torch.float16
    assert q_proj.bias.dtype == torch.bfloat16
    assert model.model.embed_tokens(torch.tensor([1])).dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match="packed"):
        save_model(model, tmp_path / "out")


def test_what_cannot_be_quantised(tmp_path: Path, configs: dict[str, ModelConfig]) -> None:
    save_model(init_model(configs["untied"], seed=3), tmp_path, torch.bfloat16)
    with pytest.raises(OptionError, match="int4 or int8"):
        load_model(tmp_path, quantize="q4_0")
    assert set(packing.QUANTIZE) == {"int4", "int8"}


@pytest.mark.parametrize("quantize", ["int4", "int8"])
def test_packed_for_the_kernels_while_loading_is_packed_and_prepared(
    saved: Path, quantize: str
) -> None:
    """Some rows at a time or the whole matrix at once: the same bits."""
    whole = load_model(saved, "float32", quantize=quantize)
    prepare(whole)
    rows = load_model(saved, "float32", quantize=quantize, prepack=True)
    prepare(rows)
    modules = dict(rows.named_modules())
    for name, module in whole.named_modules():
        if isinstance(module, (QuantLinear, QuantEmbedding)):
            assert type(modules[name].packed) is type(module.packed), name
    batch = Batch.from_sequences([list(range(40)), [90]])
    with torch.no_grad():
        assert torch.equal(rows(batch), whole(batch))


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_found_where_it_is_looked_for(
    tmp_path: Path, bad: float, quantize: str | None, configs: dict[str, ModelConfig]
) -> None:
    model = init_model(configs["untied"], seed=3)
    model.model.layers[1].mlp.up_proj.weight.data[5, 7] = bad
    save_model(model, tmp_path, torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight holds nan or inf"):
        load_model(tmp_path, "float32", quantize=quantize, check_finite=True)


def test_what_is_packed_already_is_not_packed_again(
    tmp_path: Path, write_gguf: Callable[..., None], configs: dict[str, ModelConfig]
) -> None:
    save_model(init_model(configs["untied"], seed=3), tmp_path / "model", torch.bfloat16)
    write_gguf(tmp_path / "model", tmp_path / "tiny.gguf", "Q8_0")
    with pytest.raises(OptionError, match="is packed already") as caught:
        load_model(tmp_path / "tiny.gguf", "float32", quantize="int4")
    assert caught.value.remedy == "Leave quantize out."


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("format", ["int8", "q8_0"])
def test_kernels_stay_near_the_dequantised_model(
    format: str, tmp_path: Path, write_gguf: Callable[..., None]
) -> None:
    """Rounding activations to 8 bits moves the logits (which span some 28) by 0.27 at most here. So
    every greedy token with a lead of twice the bound is float32's; one with less may be another.
    """
    source = ASSETS / "tiny-instruct"
    if format == "int8":
        model = load_model(source, "float32", quantize="int8")
    else:
        write_gguf(source, tmp_path / "tiny.gguf", "Q8_0")
        model = load_model(tmp_path / "tiny.gguf", "float32")
    twin = dense_twin(model)
    prepare(model)
    template = ChatTemplate.from_dir(source, Tokenizer.from_dir(source))
    bound, same, count = 0.5, 0, 0
    for task in TASKS.values():
        for lang in LANGUAGES:
            for question in held_out(task, lang, 1, 2):
                if question.messages is None:
                    continue
                ids = template.render(question.messages, question.tools).ids
                with torch.no_grad():
                    got, want = (m(Batch.from_sequences([list(ids)])) for m in (model, twin))
                torch.testing.assert_close(got, want, atol=bound, rtol=0)
                first, second = want.topk(2).values.unbind(1)
                equal = got.argmax(1) == want.argmax(1)
                assert bool(equal[first - second > 2 * bound].all())
                same, count = same + int(equal.sum()), count + len(equal)
    assert count > 2000 and same / count > 0.98


@pytest.mark.slow
def test_the_embedded_model_still_adds() -> None:
    with LLM("tiny-instruct", quantize="int8") as llm:
        assert "579" in llm.chat("What is 123 + 456?", temperature=0).text
    with LLM("tiny-instruct", quantize="int4") as llm:
        assert llm.chat("What is 123 + 456?", temperature=0).text
