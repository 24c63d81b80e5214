"""In every paper a run whose training diverges ends with one message and exit code 2, and leaves no checkpoint."""

import json
from pathlib import Path

import pytest

from tests.test_fence import RUNS, prepared

CHANGES = {  # a stored command, and what makes it diverge in its first task
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


@pytest.mark.parametrize("name", CHANGES)
def test_one_sentence_ends_the_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, (words, changes) = json.loads((RUNS / f"{name}.json").read_text()), CHANGES[name]
    run["files"] = {file: merged(content, changes) for file, content in run.get("files", {}).items()}
    main, stored = prepared(run, tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([*stored, *words])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in message
    assert "not finite" in message and "step" in message and "lower learning rate" in message
    assert not list(tmp_path.rglob("DTD.pth")) + list(tmp_path.rglob("task_[01].pth"))
