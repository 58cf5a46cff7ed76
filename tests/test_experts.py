"""Load of experts, its spread, and the bias that evens it: by hand."""

import pytest
import torch

from rl import experts


def test_load_counts_only_what_counts() -> None:
    chosen_TMK = torch.tensor([[[0, 2], [1, 0]], [[0, 1], [1, 2]], [[2, 1], [0, 2]]], dtype=torch.int16)
    load_ME = experts.load(chosen_TMK, torch.tensor([True, False, True]), 4)
    assert load_ME.tolist() == [[1, 1, 2, 0], [2, 1, 1, 0]]
    assert load_ME.dtype == torch.float64


def test_violation_by_hand() -> None:
    # mean 2: the fullest has 5 -> 1.5; all alike -> 0; all on one of four -> 4 - 1; nothing -> 0
    load_ME = torch.tensor([[5, 1, 1, 1], [3, 3, 3, 3], [8, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    assert experts.violation(load_ME).tolist() == [1.5, 0.0, 3.0, 0.0]


def test_bias_goes_against_the_load_by_its_rate() -> None:
    bias_E = torch.tensor([0.5, -0.25, 0.0])
    after_E = experts.rebalanced(bias_E, torch.tensor([9.0, 1.0, 5.0], dtype=torch.float64), 0.001)
    assert after_E.tolist() == pytest.approx([0.499, -0.249, 0.0])
    assert after_E.dtype == torch.float32


def test_a_lopsided_router_is_evened_out() -> None:
    """Scores that favour two of eight experts; only the bias moves."""
    draw = torch.Generator().manual_seed(0)
    favour_E = torch.tensor([0.5, 0.4, 0, 0, 0, 0, 0, 0])
    bias_E, spreads = torch.zeros(8), []
    for _ in range(400):
        scores_TE = torch.rand(512, 8, generator=draw) * 0.5 + favour_E
        chosen_TMK = (scores_TE + bias_E).topk(2).indices[:, None]
        load_ME = experts.load(chosen_TMK, torch.ones(512, dtype=torch.bool), 8)
        spreads.append(float(experts.violation(load_ME)))
        bias_E = experts.rebalanced(bias_E, load_ME[0], 0.002)
    assert spreads[0] > 2.5
    assert sum(spreads[-20:]) / 20 < 0.25
    assert bias_E[0] < bias_E[1] < bias_E[2:].min()


def test_choices_are_sets() -> None:
    ours = torch.tensor([[[3, 1], [0, 2]], [[5, 6], [1, 7]]])
    theirs = torch.tensor([[[1, 3], [0, 2]], [[6, 4], [7, 1]]], dtype=torch.int16)
    assert experts.same_choice(ours, theirs).tolist() == [[True, True], [False, True]]
