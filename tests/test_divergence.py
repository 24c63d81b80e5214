"""A run whose training diverges ends with one message and exit code 2, in every paper, and leaves no checkpoint of it."""

import importlib
import json
from pathlib import Path

import pytest

STORED = Path(__file__).parent / "golden" / "runs"
RUNS = {  # a stored command, and what makes it diverge in its first task
    "zscl": (["--lr", "1e30"], {}),
    "moe_adapters": (["--lr", "1e30"], {}),
    "zscl_cil": (["lr=1e30"], {}),
    "moe_adapters_cil": (["lr=1e30"], {}),
    "inflora": ([], {"init_lr": 1e30, "optim": "sgd"}),
    "vq_prompt": (["lr=1.0e+30"], {}),
    "it_prompt_cncm": (["lr=1.0e+30"], {}),
    "alta": (["--lr_policy", "constant"], {"OPTIM": {"LR": 10**18}}),
}


def merged(content: dict, changes: dict) -> dict:
    return content | {key: content[key] | new if isinstance(new, dict) else new for key, new in changes.items()}


@pytest.mark.parametrize("name", RUNS)
def test_one_sentence_ends_the_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, (words, changes) = json.loads((STORED / f"{name}.json").read_text()), RUNS[name]
    for file, content in run.get("files", {}).items():
        (tmp_path / file).write_text(json.dumps(merged(content, changes)))
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(run["program"]).main([*(w.format(folder=tmp_path) for w in run["arguments"]), *words])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in message
    assert "not finite" in message and "step" in message and "lower learning rate" in message
    assert not list(tmp_path.rglob("DTD.pth")) + list(tmp_path.rglob("task_[01].pth"))
