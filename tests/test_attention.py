"""Packed rows against the plain padded forward pass: log-probs, entropies and the gradient by every weight."""

from itertools import pairwise

import pytest
import torch

from rl.attention import PACKED, Varlen, _blocks, _varlen, layout, packed_attention
from rl.batch import Counts, pack
from rl.policy import Policy, graphs_compiled
from tests import tiny, varlen_cpu

SHAPES = [(5, [3, 7, 1]), (9, [4, 4]), (2, [11, 6, 2, 2])]
BOUND = 1e-5


def rows(groups, row_tokens):
    """Advantages number the samples, so that a row's samples can be told apart again."""
    numbers = iter(range(1000))
    advantages = [[float(next(numbers)) for _ in g.completions] for g in groups]
    counts = Counts(9, 40)
    batch = pack(groups, advantages, loss="dapo", counts=counts, max_tokens=16, row_tokens=row_tokens)
    return list(batch.rows)


def by_sample(row, values_T):
    return {int(row.advantages_T[row.samples_T == s][0]): values_T[row.samples_T == s] for s in range(len(row.spans))}


def weighted(values: dict[int, torch.Tensor]) -> torch.Tensor:
    """A scalar in which every token of every sample counts differently."""
    return sum(((n + 1) * torch.cos(torch.arange(len(v), dtype=v.dtype, device=v.device)) * v).sum() for n, v in values.items())


@pytest.fixture(params=[(f, t) for f in tiny.FAMILIES for t in (1.0, 0.6)], ids=lambda p: f"{p[0]}-{p[1]}", scope="module")
def reference(request):
    """Family, temperature, log-probs, entropies and gradients of the padded pass."""
    family, temperature = request.param
    model = tiny.plain(family)
    logprobs, entropies = {}, {}
    for group in tiny.groups(SHAPES):
        for lp, e in zip(*tiny.padded(model, group, temperature), strict=True):
            logprobs[len(logprobs)], entropies[len(entropies)] = lp, e.detach()
    weighted(logprobs).backward()
    return family, temperature, {n: lp.detach() for n, lp in logprobs.items()}, entropies, tiny.gradients(model)


@pytest.mark.parametrize("row_tokens", [1, 17, 40, 4096])
def test_packed_rows_equal_the_padded_pass(reference, row_tokens):
    family, temperature, logprobs, entropies, gradients = reference
    policy = tiny.policy(family)
    found, found_entropies = {}, {}
    for row in rows(tiny.groups(SHAPES), row_tokens):
        lp_T, e_T = policy(row, temperature)
        weighted(by_sample(row, lp_T)).backward()  # row by row: gradients add up
        found |= by_sample(row, lp_T.detach())
        found_entropies |= by_sample(row, e_T)
    assert found.keys() == logprobs.keys()
    for n in logprobs:
        torch.testing.assert_close(found[n], logprobs[n], rtol=0, atol=BOUND)
        torch.testing.assert_close(found_entropies[n], entropies[n], rtol=0, atol=BOUND)
    assert tiny.distance(tiny.gradients(policy.model), gradients) < BOUND


def test_the_segments_for_a_gpu_are_the_same_attention():
    """What `_varlen` says, done with plain softmax, equals the blocks; the kernel itself is tested in gpu/."""
    (row,) = rows(tiny.groups(SHAPES), 4096)
    length = len(row.ids_L)
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, length, 8), torch.randn(1, 2, length, 8), torch.randn(1, 2, length, 8)
    blocks = layout(row.spans, length, torch.device("cpu"))
    expected, _ = packed_attention(None, q, k, v, None, 0.3, packing=blocks)
    segments = _varlen(row.spans, torch.device("cpu"))
    assert isinstance(segments, Varlen)
    cu_q, cu_k = segments.cu_q.tolist(), segments.cu_k.tolist()
    assert (cu_q[-1], cu_k[-1]) == (length, len(segments.kv))
    assert segments.max_q == max(b - a for a, b in pairwise(cu_q))
    assert segments.max_k == max(b - a for a, b in pairwise(cu_k))
    found = torch.empty_like(expected)
    for i in range(len(cu_q) - 1):
        at = segments.kv[cu_k[i] : cu_k[i + 1]]
        queries, keys = q[0, :, cu_q[i] : cu_q[i + 1]], k[0].repeat_interleave(2, 0)[:, at]
        n, m = queries.shape[1], keys.shape[1]
        visible = torch.ones(n, m, dtype=torch.bool).tril(m - n)  # causal, aligned to the end of the keys
        weights = (queries @ keys.transpose(1, 2) * 0.3).masked_fill(~visible, float("-inf")).softmax(-1)
        found[0, cu_q[i] : cu_q[i + 1]] = (weights @ v[0].repeat_interleave(2, 0)[:, at]).transpose(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.fixture
def varlen_on_cpu(monkeypatch):
    """Rows take the path that is meant for a GPU, with dense arithmetic in the kernel's place."""
    varlen_cpu.register()
    monkeypatch.setattr("rl.policy.layout", lambda spans, length, device: _varlen(spans, device))


def through(policy, made, temperature):
    found, entropies = {}, {}
    for row in made:
        lp_T, e_T = policy(row, temperature)
        weighted(by_sample(row, lp_T)).backward()
        found |= by_sample(row, lp_T.detach())
        entropies |= by_sample(row, e_T)
    return found, entropies


@pytest.mark.parametrize("heads", ["option", "repeat"])
def test_the_path_for_a_gpu_equals_the_padded_pass(reference, heads, varlen_on_cpu, monkeypatch):
    family, temperature, logprobs, entropies, gradients = reference
    monkeypatch.setattr("rl.attention._shared_heads", lambda _: heads)
    policy = tiny.policy(family)
    found, found_entropies = through(policy, rows(tiny.groups(SHAPES), 17), temperature)
    for n in logprobs:
        torch.testing.assert_close(found[n], logprobs[n], rtol=0, atol=BOUND)
        torch.testing.assert_close(found_entropies[n], entropies[n], rtol=0, atol=BOUND)
    assert tiny.distance(tiny.gradients(policy.model), gradients) < BOUND


def test_layers_are_compiled_once_for_all_layers_and_row_lengths(varlen_on_cpu, compiler):
    """One graph, whatever the rows; equal to the layers as they are. The real compiler's turn is in gpu/."""
    model = tiny.make(tiny._config("qwen3"), num_hidden_layers=4, layer_types=["full_attention"] * 4)
    model.set_attn_implementation(PACKED)
    policy = Policy(model)
    made = [*rows(tiny.groups(SHAPES), 17), *rows(tiny.groups([(30, [5, 9, 13, 2, 8]), (6, [21])], seed=1), 4096)]
    assert len({len(row.ids_L) for row in made}) > 3
    expected, gradients = through(policy, made, 0.7)[0], tiny.gradients(policy)
    policy.zero_grad()
    before = graphs_compiled()
    for layer in policy.layers():
        layer.compile(dynamic=True, backend="aot_eager")
    found = through(policy, made, 0.7)[0]
    assert graphs_compiled() - before == 1
    for n in expected:
        torch.testing.assert_close(found[n], expected[n], rtol=0, atol=1e-6)
    assert tiny.distance(tiny.gradients(policy), gradients) < 1e-6


def test_who_sees_whom():
    (row,) = rows(tiny.groups([(2, [2, 1])]), 4096)
    (block,) = _blocks(row.spans, 5, torch.device("cpu"))
    assert (block.start, block.prompt, block.max_k) == (0, 2, 4)
    assert block.inside_GM.int().tolist() == [[1, 1], [1, 0]]
    assert block.index_GM[block.inside_GM].tolist() == [2, 3, 4]
    assert block.mask_MK.int().tolist() == [
        [1, 1, 1, 0],  # a first token: the prompt and itself
        [1, 1, 1, 1],
    ]
    with pytest.raises(AssertionError, match="cover"):
        _blocks(row.spans, 6, torch.device("cpu"))


def test_a_model_that_loses_the_layout_is_refused():
    (row,) = rows(tiny.groups([(2, [2, 1])]), 4096)
    model = tiny.policy().model
    with pytest.raises(ValueError, match="did not hand the row layout"):
        model(input_ids=row.ids_L[None], position_ids=row.positions_L[None], use_cache=False)


@pytest.mark.parametrize(
    ("option", "word"),
    [({"softcap": 50.0}, "softcap"), ({"s_aux": torch.zeros(1)}, "s_aux"), ({"sliding_window": 3}, "sliding_window")],
)
def test_attention_of_another_kind_is_refused_and_not_dropped(option, word):
    (row,) = rows(tiny.groups([(2, [2, 1])]), 4096)
    packing = layout(row.spans, 5, torch.device("cpu"))
    x = torch.randn(1, 1, 5, 8)
    with pytest.raises(ValueError, match=word):
        packed_attention(None, x, x, x, None, 1.0, packing=packing, **option)


def test_a_window_wider_than_every_sequence_changes_nothing():
    (row,) = rows(tiny.groups([(2, [2, 1])]), 4096)
    packing = layout(row.spans, 5, torch.device("cpu"))
    x = torch.randn(1, 1, 5, 8)
    plain, _ = packed_attention(None, x, x, x, None, 1.0, packing=packing)
    windowed, _ = packed_attention(None, x, x, x, None, 1.0, packing=packing, sliding_window=5, softcap=None)
    assert torch.equal(plain, windowed)
