"""What a run leaves holds nothing of the environment; a model's own code does not run unasked; texts of a model do nothing in a browser."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from recipes import run as door
from rl.policy import load_model, load_tokenizer
from rl.report_html import write_report
from tests.browser import browser
from tests.tiny_run import refused, tiny_model, write_recipe

SECRETS = {
    "HF_TOKEN": "hf_planted4secret9token", "WANDB_API_KEY": "planted0wandb1key2of3",
    "MY_OWN_VARIABLE": "planted-own-value",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+secret", "HTTPS_PROXY_USER": "planted-proxy-user:planted-pass",
}  # fmt: skip
HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'></textarea></script><svg onload=window.hacked=3>"
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def leaks(folder: Path, printed: str) -> list[str]:
    """Where a planted value, or the name of its variable, stands."""
    found = [name for name, value in SECRETS.items() if value in printed or name in printed]
    for path in (p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        found += [f"{name} in {path}" for name, value in SECRETS.items() if value.encode() in data or name.encode() in data]
    return found


def test_nothing_of_the_environment_is_written(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run with a tracker and a reward pool to its end, one that a guard stops, and one that is refused."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    recipe, out = str(write_recipe(tmp_path, tiny)), tmp_path / "run"
    pool = ["reward_workers.processes=1", 'run.trackers=["tensorboard"]']
    assert door.main([recipe, f"run.out={out}", "run.steps=2", "run.save_every=1", *pool]) == 0
    assert door.main([recipe, f"run.out={tmp_path / 'stopped'}", "run.steps=2", "guard.patience=1"]) == 1
    assert door.main([recipe, f"run.out={tmp_path / 'refused'}", "model.path=./absent"]) == 2
    printed = "".join(capfd.readouterr())
    assert "guard truncated" in printed
    written = {p.relative_to(out).parts[0] for p in out.rglob("*") if p.is_file()}
    assert {"config.json", "metrics.jsonl", "report.html", "result.json", "rollouts", "checkpoints", "final", "tiny"} <= written
    assert leaks(tmp_path, printed) == []
    (out / "rollouts" / "x").write_text(os.environ["HF_TOKEN"])
    assert leaks(tmp_path, "MY_OWN_VARIABLE") == ["MY_OWN_VARIABLE", f"HF_TOKEN in {out / 'rollouts' / 'x'}"]  # it can be seen


@pytest.fixture
def with_code(tmp_path: Path) -> Path:
    """A model folder whose files ask for code of its own, which leaves a mark when it runs."""
    folder = Path(tiny_model(tmp_path / "model"))
    mark = tmp_path / "it ran"
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "ours", "auto_map": {"AutoConfig": "ours.OursConfig", "AutoModelForCausalLM": "ours.Ours"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "ours.py").write_text(
        f"open({str(mark)!r}, 'w').close()\nfrom transformers import Qwen3Config, Qwen3ForCausalLM\n"
        "class OursConfig(Qwen3Config):\n    model_type = 'ours'\nclass Ours(Qwen3ForCausalLM):\n    config_class = OursConfig\n"
    )
    return folder


def test_code_of_a_model_runs_only_when_asked_for(
    with_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    recipe, mark = str(write_recipe(tmp_path, str(with_code))), tmp_path / "it ran"
    told = refused(capsys, [recipe, f"run.out={tmp_path / 'run'}"])
    assert "it brings code of its own, which was not run; read that code, then set model.trust_remote_code=true" in told
    load_tokenizer(str(with_code))  # a tokenizer needs no code here
    with pytest.raises(ValueError, match="which was not run"):
        load_model(str(with_code), dtype=torch.float32)
    assert not mark.exists()
    assert not (tmp_path / "run").exists()
    load_tokenizer(str(with_code), trust_remote_code=True)
    load_model(str(with_code), dtype=torch.float32, trust_remote_code=True)
    assert mark.exists()  # the trap works


def test_a_hostile_rollout_does_nothing_in_a_browser(tiny: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r | {"question": HOSTILE + r["question"]}) + "\n" for r in rows))
    args = [
        str(recipe),
        f"run.out={tmp_path / 'run'}",
        f"name={HOSTILE}",
        "run.steps=1",
        "evaluate.problems=0",
        "prompt.max_tokens=300",
    ]
    assert door.main(args) == 0
    path = tmp_path / "run" / "rollouts" / "step-000001.jsonl"
    groups = [json.loads(line) for line in path.read_text().splitlines()]
    for group in groups:  # what a model might say
        for c in group["completions"]:
            c["text"], c["reason"] = HOSTILE + c["text"], HOSTILE
    path.write_text("".join(json.dumps(g) + "\n" for g in groups))
    page = write_report(tmp_path / "run")
    source = Path(page).read_text()
    assert "&lt;script&gt;window.hacked" in source
    with browser(tmp_path) as tab:
        tab.open(Path(page))
        assert tab.js("window.hacked") is None
        assert "window.hacked" in tab.text("body")  # it stands there to be read
        assert tab.js("document.querySelectorAll('script, img, iframe, [onload], [onerror]').length") == 0
        assert tab.errors == []
