from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import eager_attention_forward

from flmm_detseg.ops.rows import attention_rows, merge_rows, take_columns, take_tokens


class Block(torch.nn.Module):
    """What transformers' eager function reads from an attention block."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


def eager(query, key, visible, scaling):
    additive = torch.zeros(visible.shape, dtype=query.dtype).masked_fill(
        ~visible, torch.finfo(query.dtype).min
    )
    block = Block(query.shape[1] // key.shape[1]).eval()
    return eager_attention_forward(block, query, key, torch.zeros_like(key), additive, scaling)[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("heads", [None, [0, 3, 5], [1, 2]])
@pytest.mark.parametrize("masked", [False, True])
def test_rows_equal_transformers_eager_block(dtype, kv_heads, heads, masked):
    torch.manual_seed(0)
    batch, num_heads, length, size = 2, 6, 9, 8
    query = torch.randn(batch, num_heads, length, size).to(dtype)
    key = torch.randn(batch, kv_heads, length, size).to(dtype)
    visible = torch.ones(length, length, dtype=torch.bool).tril().expand(batch, 1, -1, -1).clone()
    if masked:
        visible[0, :, :, 1:3] = False
        visible[1, :, 6:, 4] = False
    positions = torch.tensor([[1, 5, 8, 0], [8, 2, 2, 7]])
    expected = eager(query, key, visible, 0.35)
    expected = expected[:, slice(None) if heads is None else heads]
    expected = torch.stack([rows[:, index] for rows, index in zip(expected, positions)])
    ours = attention_rows(
        query,
        key,
        positions,
        scaling=0.35,
        mask=visible if masked else None,
        heads=None if heads is None else torch.tensor(heads),
    )
    assert ours.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)
    if dtype == torch.bfloat16:
        # Same roundings, not only the same size of error: nearly all values are the same number.
        assert (ours == expected).float().mean() > 0.99


@pytest.mark.case("model/fp16_rows")
@pytest.mark.parametrize("autocast", [False, True])
def test_float16_rows_do_not_overflow(autocast):
    """Products beyond 65504 before the scaling; the rows are those of float32 and what sdpa answers with."""
    torch.manual_seed(0)
    query, key = 900 * torch.randn(1, 2, 6, 8), 900 * torch.randn(1, 1, 6, 8)
    positions = torch.tensor([[1, 4, 5]])
    expected = attention_rows(query.half().float(), key.half().float(), positions, scaling=1e-3)
    with torch.autocast("cpu", dtype=torch.float16, enabled=autocast):
        ours = attention_rows(query.half(), key.half(), positions, scaling=1e-3)
    assert ours.dtype == torch.float16
    torch.testing.assert_close(ours.float(), expected, rtol=1e-3, atol=1e-7)
    identity = torch.eye(6).expand(1, 2, 6, 6).half()
    kernel = torch.nn.functional.scaled_dot_product_attention(
        query.half(), key.half().expand(1, 2, 6, 8), identity, is_causal=True, scale=1e-3
    )
    torch.testing.assert_close(ours, kernel[:, :, positions[0]], rtol=0, atol=5e-3)


@pytest.mark.case("model/model_facts")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torchs_default_dtype_does_not_matter(dtype):
    rows, phrase_ids = torch.rand(1, 2, 4, 5).half(), torch.tensor([[0, 1, 0, -1]])
    expected = merge_rows(rows, phrase_ids, 2)
    torch.set_default_dtype(dtype)
    try:
        assert torch.equal(merge_rows(rows, phrase_ids, 2), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_mask_of_one_batch_row_serves_all():
    query, key = torch.randn(3, 2, 4, 8), torch.randn(3, 2, 4, 8)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    positions = torch.tensor([[3], [1], [0]])
    with_mask = attention_rows(query, key, positions, scaling=1.0, mask=mask)
    torch.testing.assert_close(with_mask, attention_rows(query, key, positions, scaling=1.0))


def test_take_tokens_and_columns():
    states = torch.arange(24.0).view(2, 4, 3)
    assert take_tokens(states, torch.tensor([[3, 3], [0, 1]])).tolist() == [
        [[9, 10, 11], [9, 10, 11]],
        [[12, 13, 14], [15, 16, 17]],
    ]
    rows = torch.rand(2, 3, 4, 5)
    columns = torch.tensor([[4, 0], [1, 1]])
    taken = take_columns(rows, columns)
    assert torch.equal(taken[0], rows[0][:, :, [4, 0]])
    assert torch.equal(taken[1], rows[1][:, :, [1, 1]])


@pytest.mark.parametrize("how", ["mean", "max"])
def test_merge_equals_a_loop_over_phrases(how):
    torch.manual_seed(0)
    rows = torch.rand(2, 3, 6, 5)
    phrase_ids = torch.tensor([[0, 2, 0, 1, 2, -1], [1, 1, 1, 0, -1, -1]])
    merged = merge_rows(rows, phrase_ids, 3, how=how)
    assert merged.shape == (2, 3, 3, 5)
    for b in range(2):
        for k in range(3):
            own = rows[b][:, phrase_ids[b] == k]
            if own.shape[1] == 0:
                expected = torch.zeros(3, 5)
            else:
                expected = own.mean(1) if how == "mean" else own.amax(1)
            torch.testing.assert_close(merged[b, k], expected)


@pytest.mark.parametrize("how", ["mean", "max"])
def test_merge_of_half_precision_is_float32_and_survives_autocast(how):
    rows = torch.rand(1, 2, 40, 3).bfloat16()
    phrase_ids = torch.zeros(1, 40, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        merged = merge_rows(rows, phrase_ids, 1, how=how)
    exact = rows.double().mean(2) if how == "mean" else rows.double().amax(2)
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged[:, 0].double(), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", ["mean", "max"])
def test_merge_is_differentiable_and_takes_no_rows(how):
    rows = torch.rand(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    phrase_ids = torch.tensor([[1, 0, 1]])
    assert torch.autograd.gradcheck(
        lambda x: merge_rows(x.float(), phrase_ids, 2, how=how).double(), rows, eps=1e-3, atol=1e-2
    )
    assert merge_rows(torch.rand(2, 3, 0, 4), torch.zeros(2, 0, dtype=torch.int64), 0, how=how).shape == (
        2,
        0,
        3,
        4,
    )
