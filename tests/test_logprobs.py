"""Chunked log-probs against the plain calculation over full logits: values, gradients, top-k and top-p."""

from itertools import pairwise

import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from rl import logprobs
from rl.logprobs import Cut, chunks, token_logprobs

TOKENS, HIDDEN, VOCABULARY = 37, 24, 211
CUTS = [
    Cut(),
    Cut(0.6),
    Cut(1.0, top_k=5),
    Cut(0.7, top_p=0.8),
    Cut(1.3, top_k=20, top_p=0.7),
    Cut(0.9, 1),
    Cut(1.0, 500, 1e-6),
]


def inputs(dtype=torch.float32, scale=0.5):
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=draw).to(dtype).requires_grad_()
    weight = (torch.randn(VOCABULARY, HIDDEN, generator=draw) * scale).to(dtype).requires_grad_()
    bias = torch.randn(VOCABULARY, generator=draw).to(dtype).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=draw)
    targets[::2] = (hidden @ weight.t() + bias).argmax(-1)[::2]  # half of them likely, half of them mostly cut away
    return hidden, weight, bias, targets


def plain(hidden, weight, bias, targets, cut):
    """Full logits, transformers' own warpers in vLLM's order, log-softmax; the target is let back in."""
    scores = (hidden @ weight.t() + bias).float() / cut.temperature
    kept = scores.detach()
    if 0 < cut.top_k < VOCABULARY:
        kept = TopKLogitsWarper(cut.top_k)(None, kept)
    if cut.top_p < 1:
        kept = TopPLogitsWarper(cut.top_p)(None, kept)
    out = kept.isinf().scatter(1, targets[:, None], False)
    logs = scores.masked_fill(out, float("-inf")).log_softmax(-1)
    entropy = -torch.where(out, 0.0, logs.exp() * logs).sum(-1)
    return logs.gather(1, targets[:, None])[:, 0], entropy, out


def scored(function, arguments, *options):
    for x in arguments[:3]:
        x.grad = None
    logprobs_T, entropy_T = function(*arguments, *options)[:2]
    (logprobs_T * torch.linspace(-1, 2, TOKENS)).sum().backward()
    return [logprobs_T.detach(), entropy_T.detach(), *(x.grad.clone() for x in arguments[:3])]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("tokens", [TOKENS, 8])
def test_values_and_gradients_are_those_of_full_logits(cut, tokens, monkeypatch):
    monkeypatch.setitem(logprobs.CHUNK_ELEMENTS, "cpu", tokens * VOCABULARY)
    arguments = inputs()
    found, expected = scored(token_logprobs, arguments, cut), scored(plain, arguments, cut)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_cuts_cut_and_keep_the_sampled_token():
    arguments = inputs()
    for cut in CUTS[2:]:
        *_, out = plain(*arguments, cut)
        assert out.sum() > TOKENS * VOCABULARY / 2
        lone = token_logprobs(*arguments, cut)[0]
        assert lone.isfinite().all()
    greedy = token_logprobs(*arguments, Cut(1.0, top_k=1))[0]
    assert (greedy[::2] == 0).all()  # the likeliest alone
    assert (greedy[1::2] < -0.5).all()  # another: it and the likeliest


def test_top_p_is_taken_of_what_top_k_left():
    """Masses 0.4, 0.3, 0.2, 0.1: of the top 2 the first has 4/7 > 0.5 and stands alone; of all it would be joined by the second."""
    hidden, weight = torch.eye(1), torch.tensor([0.4, 0.3, 0.2, 0.1]).log()[:, None]
    both = token_logprobs(hidden, weight, None, torch.tensor([0]), Cut(1.0, top_k=2, top_p=0.5))[0]
    alone = token_logprobs(hidden, weight, None, torch.tensor([0]), Cut(1.0, top_p=0.5))[0]
    assert both.item() == pytest.approx(0.0, abs=1e-6)
    assert alone.item() == pytest.approx(torch.tensor(0.4 / 0.7).log().item(), abs=1e-6)


def test_tokens_that_tie_at_the_edge_are_kept():
    hidden, weight = torch.eye(1), torch.tensor([2.0, 1.0, 1.0, 0.0])[:, None]
    found = token_logprobs(hidden, weight, None, torch.tensor([0]), Cut(1.0, top_k=2))[0]
    assert found.item() == pytest.approx(torch.tensor([2.0, 1.0, 1.0]).log_softmax(0)[0].item(), abs=1e-6)


def test_a_token_that_is_nearly_certain_keeps_its_gradient_in_bf16():
    """1 - p = 5e-4 is less than bf16 tells from 0 near 1: rounded before the subtraction the gradient would be gone."""
    hidden = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[7.6], [0.0]], dtype=torch.bfloat16, requires_grad=True)
    token_logprobs(hidden, weight, None, torch.tensor([0]), Cut())[0].backward()
    p = torch.tensor([7.59375, 0.0]).softmax(0)[1].item()  # 7.6 in bf16
    assert weight.grad[0].item() == pytest.approx(p, rel=0.01)
    assert weight.grad[1].item() == pytest.approx(-p, rel=0.01)


def test_weight_gradients_of_many_chunks_add_up_in_fp32(monkeypatch):
    """600 chunks of one token, each 0.5: a sum in bf16 stands still at 128."""
    monkeypatch.setitem(logprobs.CHUNK_ELEMENTS, "cpu", 2)
    hidden = torch.ones(600, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(2, 1, requires_grad=True)
    token_logprobs(hidden, weight, None, torch.zeros(600, dtype=torch.int64), Cut())[0].sum().backward()
    assert weight.grad[:, 0].tolist() == [300.0, -300.0]
    pure = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    token_logprobs(hidden, pure, None, torch.zeros(600, dtype=torch.int64), Cut())[0].sum().backward()
    assert pure.grad[:, 0].tolist() == [300.0, -300.0]  # summed in fp32 for weights in bf16 too


def test_frozen_weights_get_no_gradient():
    hidden, weight, _, targets = inputs()
    weight.requires_grad_(False)
    token_logprobs(hidden, weight, None, targets, Cut())[0].sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_a_head_in_fp32_under_autocast():
    """hidden in fp32 asks for it; the product is then not rounded to bf16."""
    hidden, weight, _, targets = inputs()
    exact = token_logprobs(hidden, weight, None, targets, Cut())[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(token_logprobs(hidden, weight, None, targets, Cut())[0], exact)
        coarse = token_logprobs(hidden.bfloat16(), weight, None, targets, Cut())[0]
    assert 1e-4 < (coarse - exact).abs().max() < 0.2


def test_compiled_for_any_number_of_tokens(compiler, monkeypatch):
    compile_ = torch.compile
    made = []
    monkeypatch.setattr(logprobs.torch, "compile", lambda f: compile_(f, backend=lambda g, _: made.append(g) or g.forward))
    kernels = logprobs._kernels.__wrapped__(True)
    monkeypatch.setattr(logprobs, "_kernels", lambda compiled: kernels if compiled else (logprobs._stats, logprobs._slope))
    arguments = inputs()
    for elements in (TOKENS, 8, 5):
        monkeypatch.setitem(logprobs.CHUNK_ELEMENTS, "cpu", elements * VOCABULARY)
        expected, found = scored(token_logprobs, arguments, Cut(0.7)), scored(token_logprobs, arguments, Cut(0.7), True)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert len(made) == 2  # one graph for the statistics, one for the slopes


def test_chunks_are_even_and_within_bounds(monkeypatch):
    monkeypatch.setitem(logprobs.CHUNK_ELEMENTS, "cpu", 10 * VOCABULARY + 3)
    found = chunks(37, VOCABULARY, "cpu")
    assert [s.stop - s.start for s in found] == [9, 9, 9, 10]
    assert (found[0].start, found[-1].stop) == (0, 37)
    assert all(a.stop == b.start for a, b in pairwise(found))
    assert chunks(3, 10**9, "cpu") == [slice(i, i + 1) for i in range(3)]
