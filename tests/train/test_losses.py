from __future__ import annotations

import numpy as np
import pytest
import torch

from qwenkit import ops
from qwenkit.config import ModelConfig
from qwenkit.model.load import init_model
from qwenkit.model.qwen import Qwen
from qwenkit.train import losses
from qwenkit.train.data import MicroBatch, collate
from qwenkit.train.losses import head_loss, next_token_loss
from qwenkit.train.tokenise import TokenStore


def make(tied: bool = True) -> tuple[Qwen, MicroBatch]:
    config = ModelConfig(
        vocab_size=90,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 90, 60).astype(np.int32)
    mask = rng.integers(0, 2, 60).astype(np.uint8)
    store = TokenStore(ids, mask, np.array([0, 25, 40, 60], np.int64))
    return init_model(config, seed=1), collate(store, [1, 0, 2], torch.device("cpu"))


def plain_loss(model: Qwen, micro: MicroBatch) -> torch.Tensor:
    logits = model.forward(micro.batch)[micro.rows]
    return -ops.token_logprobs(logits, micro.targets).sum()


@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_equal_the_plain_way(
    tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 90 * 7)  # several chunks, the last one short
    monkeypatch.setattr(losses, "MIN_CHUNK_ROWS", 7)
    model, micro = make(tied)
    assert micro.supervised > 14 and micro.supervised % 7
    plain_loss(model, micro).backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss = next_token_loss(model, micro)
    (loss / 3).backward()
    torch.testing.assert_close(loss.detach(), plain_loss(model, micro).detach())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad * 3, wanted[name], atol=2e-5, rtol=1e-4)


def test_without_gradients_the_loss_is_the_same() -> None:
    model, micro = make()
    with torch.no_grad():
        quiet = next_token_loss(model, micro)
    torch.testing.assert_close(quiet, next_token_loss(model, micro).detach())


def test_bf16_is_close_to_fp32() -> None:
    model, micro = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = next_token_loss(model, micro)
        half.backward()
    full = next_token_loss(model, micro)
    assert abs(half.item() - full.item()) < 0.01 * full.item()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_the_gradient_of_the_head_is_exact_in_double() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 8, 3, 3, 1])
    head_loss(x, weight, targets).backward()
    got = x.grad, weight.grad
    x.grad = weight.grad = None
    torch.nn.functional.cross_entropy(x @ weight.T, targets, reduction="sum").backward()
    for mine, theirs in zip(got, (x.grad, weight.grad), strict=True):
        assert mine is not None and theirs is not None
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
