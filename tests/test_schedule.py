"""Learning rates by hand."""

import pytest

from rl.schedule import learning_rate


def rates(total, **settings):
    return [learning_rate(step, base=2.0, total=total, **settings) for step in range(total)]


def test_warmup_rises_in_equal_parts_to_the_base_rate_and_wastes_no_update():
    for kind in ("constant", "cosine", "linear"):
        assert rates(8, kind=kind, warmup=4)[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates(8, kind="steps", warmup=4, milestones=(6,))[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]


def test_constant():
    assert rates(3, kind="constant", warmup=0) == [2.0, 2.0, 2.0]
    assert rates(3, kind="constant", warmup=3) == pytest.approx([2 / 3, 4 / 3, 2.0])


def test_linear_by_hand():
    # 4 updates after the warm-up: p = 0, 1/4, 2/4, 3/4
    assert rates(6, kind="linear", warmup=2) == [1.0, 2.0, 2.0, 1.5, 1.0, 0.5]
    # final_ratio 0.2: 2 * (1 - 0.8 p)
    assert rates(4, kind="linear", warmup=0, final_ratio=0.2) == pytest.approx([2.0, 1.6, 1.2, 0.8])


def test_cosine_by_hand():
    # cos(0), cos(pi/4), cos(pi/2), cos(3pi/4) = 1, 0.70710678, 0, -0.70710678; rate = 1 + cos
    assert rates(4, kind="cosine", warmup=0) == pytest.approx([2.0, 1.7071067812, 1.0, 0.2928932188])
    # down to a tenth: 2 * (0.1 + 0.9 * (1 + cos) / 2) = 0.2 + 0.9 * (1 + cos)
    assert rates(4, kind="cosine", warmup=0, final_ratio=0.1) == pytest.approx([2.0, 1.736396103, 1.1, 0.463603897])


def test_steps_by_hand():
    assert rates(6, kind="steps", warmup=0, milestones=(2, 5), factor=0.5) == [2.0, 2.0, 1.0, 1.0, 1.0, 0.5]
    assert rates(3, kind="steps", warmup=0, milestones=(1,)) == pytest.approx([2.0, 0.2, 0.2])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kind": "cosin"}, "'cosin' is unknown: use one of constant, cosine, linear, steps"),
        ({"base": 0.0}, "learning rate 0.0 cannot teach"),
        ({"base": float("nan")}, "learning rate nan cannot teach"),
        ({"total": 0}, "total must be at least 1"),
        ({"warmup": 11}, "warm-up of 11 updates does not fit into 10"),
        ({"warmup": -1}, "warm-up of -1"),
        ({"step": 10}, "update 10 is outside the schedule's 0 to 9"),
        ({"step": -1}, "update -1 is outside"),
        ({"kind": "cosine", "final_ratio": 1.5}, "final_ratio 1.5 is not a share"),
        ({"final_ratio": 0.1}, "final_ratio 0.1 means nothing to a 'constant' schedule"),
        ({"milestones": (3,)}, "a 'constant' schedule has no milestones"),
        ({"kind": "steps"}, "needs milestones"),
        ({"kind": "steps", "milestones": (5, 3)}, "must rise"),
        ({"kind": "steps", "milestones": (3, 3)}, "must rise"),
        ({"kind": "steps", "milestones": (3, 10)}, "below total"),
        ({"kind": "steps", "milestones": (1,), "warmup": 2}, "from the warm-up's end"),
        ({"kind": "steps", "milestones": (3,), "factor": 0.0}, "factor 0.0 would not lower"),
    ],
)
def test_nonsense_is_refused_in_one_line(settings, says):
    with pytest.raises(ValueError) as error:
        learning_rate(**{"step": 0, "kind": "constant", "base": 1.0, "total": 10, "warmup": 0} | settings)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
