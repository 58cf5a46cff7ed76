"""The sampler over transformers: see sampler_laws.py; and the fingerprint."""

import json
import shutil

import pytest
import torch

from rl.records import Sampling
from rl.sampler import TransformersSampler, completion, fingerprint
from tests import sampler_laws as laws
from tests import tiny


def start(folder: str, **options) -> TransformersSampler:
    return TransformersSampler(folder, tiny.tokenizer(), device=laws.CPU, **options)


@pytest.fixture
def sampler():
    made = start(tiny.path())
    yield made
    made.close()


@pytest.mark.parametrize(
    "law",
    [laws.shape, laws.seeds, laws.finished, laws.distribution, laws.greedy_is_arg_max, laws.truncated],
    ids=lambda law: law.__name__,
)
def test_law(sampler, law):
    assert law(sampler) > 0


def test_log_probs_equal_the_learners_after_updates(sampler, record_property):
    largest = laws.log_probs_equal_the_learners_after_updates(sampler)
    assert largest <= laws.BOUND
    record_property("largest_difference", largest)


def test_batches_change_no_log_prob(sampler):
    sampling = Sampling(n=2, max_tokens=12, temperature=0.0)
    together, apart = sampler.generate(laws.ids(), sampling), start(tiny.path(), batch=1).generate(laws.ids(), sampling)
    for a, b in zip(together, apart, strict=True):
        assert [c.ids for c in a] == [c.ids for c in b]
        for x, y in zip(a, b, strict=True):
            assert x.logprobs == pytest.approx(y.logprobs, abs=1e-5)


def test_a_prompt_is_finished_with_the_batch_of_its_last_completion(monkeypatch):
    sampler, happened = start(tiny.path(), batch=4), []
    real = sampler._batch
    monkeypatch.setattr(sampler, "_batch", lambda *given: happened.append("batch") or real(*given))
    prompts = laws.ids()[:3]  # of 3, 17 and 150 tokens
    sampler.generate(prompts, Sampling(n=3, max_tokens=4), lambda i, completions: happened.append(i))
    assert happened == ["batch", 0, "batch", 1, "batch", 2]  # of 9 completions 4, 4 and 1


def test_prompts_that_done_adds_are_sampled_too(sampler):
    heard, prompts = [], laws.ids()

    def done(index, completions):
        heard.append(index)
        return {0: prompts[2:4], 3: prompts[4:5]}.get(index)

    made = sampler.generate(prompts[:2], Sampling(n=3, max_tokens=8, temperature=0.0), done)
    assert sorted(heard) == [0, 1, 2, 3, 4]
    alone = sampler.generate(prompts[:5], Sampling(n=3, max_tokens=8, temperature=0.0))
    assert [[c.ids for c in m] for m in made] == [[c.ids for c in m] for m in alone]


def test_a_call_within_a_call_moves_no_draw_of_the_outer_one():
    """Canaries are greedy and served between two batches; samples are those they would have been without."""
    sampler, sampling = start(tiny.path(), batch=4), Sampling(n=3, max_tokens=8, seed=3)
    alone, served = sampler.generate(laws.ids(), sampling), []

    def between():
        if not sampler.inner:
            sampler.inner = True
            served.extend(sampler.generate(laws.ids()[:2], Sampling(n=1, max_tokens=8, temperature=0.0)))
            sampler.inner = False

    sampler.inner, sampler.between = False, between
    assert sampler.generate(laws.ids(), sampling) == alone
    assert len(served) >= 4
    assert sampler.generate(laws.ids(), sampling) == alone  # and the next call begins with its own seed


@pytest.fixture
def bent(tmp_path):
    """A folder whose generation config bends the distribution, as those of chat models do."""
    shutil.copytree(tiny.path(), tmp_path, dirs_exist_ok=True)
    file = tmp_path / "generation_config.json"
    extra = {"repetition_penalty": 3.0, "top_k": 2, "top_p": 0.3, "temperature": 0.2, "do_sample": True, "min_new_tokens": 20}
    file.write_text(json.dumps(json.loads(file.read_text()) | extra))
    return start(str(tmp_path))


@pytest.mark.parametrize("law", [laws.shape, laws.distribution, laws.greedy_is_arg_max], ids=lambda law: law.__name__)
def test_a_models_own_sampling_settings_bend_nothing(bent, law):
    assert law(bent) > 0


def test_memory_holds_one_step_of_logits(sampler, monkeypatch):
    kept = []
    real = sampler.model.generate
    monkeypatch.setattr(sampler.model, "generate", lambda **options: kept.append(real(**options)) or kept[-1])
    sampler.generate(laws.ids(), Sampling(n=1, max_tokens=4))
    assert isinstance(kept[0], torch.Tensor)  # token ids alone, no logits of all steps


def test_load_refuses_weights_that_are_missing_or_unknown(sampler):
    weights = dict(tiny.policy().weights())
    with pytest.raises(KeyError):
        sampler.load([*weights.items(), ("other.weight", torch.zeros(1))], 1)
    weights.pop("model.norm.weight")
    with pytest.raises(RuntimeError, match=r"1 weights .* model\.norm\.weight"):
        sampler.load(weights.items(), 1)
    assert sampler.version == 0


def test_load_copies(sampler):
    policy = tiny.policy()
    sampler.load(policy.weights(), 3)
    before = sampler.fingerprint()
    with torch.no_grad():
        policy.model.model.norm.weight.add_(1.0)
    assert sampler.fingerprint() == before
    assert sampler.version == 3


def test_a_completion_stopped_exactly_when_it_ends_with_a_stop_token():
    assert completion([5, 0], [-1.0, -1.0], (0, 7), "x", 2).finish == "stop"
    assert completion([5, 7], [-1.0, -1.0], (0, 7), "x", 2).finish == "stop"
    assert completion([0, 5], [-1.0, -1.0], (0, 7), "x", 2).finish == "length"


def total(weights) -> int:
    return sum(fingerprint(weights).values()) % (1 << 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_fingerprint_is_exact_and_does_not_mind_fusing_order_or_padding(dtype):
    torch.manual_seed(0)
    q, k = torch.randn(8, 4).to(dtype), torch.randn(3, 4).to(dtype)
    whole = total([("q", q), ("k", k)])
    assert total([("k", k), ("q", q)]) == whole
    assert total([("qk", torch.cat([q, k, torch.zeros(5, 4, dtype=dtype)]))]) == whole
    assert total([("qT", q.T), ("k", k)]) == whole
    smallest = q.clone()
    smallest[2, 1] = torch.nextafter(smallest[2, 1], torch.tensor(9.0, dtype=dtype))  # one bit
    assert total([("q", smallest), ("k", k)]) != whole
    assert fingerprint([("q", smallest), ("k", k)])["k"] == fingerprint([("k", k)])["k"]
    assert 0 <= whole < 1 << 64
