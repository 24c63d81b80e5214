"""Runs that the version before left (golden/first_edition): the same commands take them up, others are refused.

Every folder is a finished run of the stored command of that name (golden/runs), its checkpoints emptied: a run that
would read or train one of them does not pass.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from common.files import CHECKSUMS
from common.mini import CLIP_FILE, VIT_FILE
from tests.test_fence import RUNS, prepared

FIRST_EDITION = RUNS.parent / "first_edition"
# labels that have another text since; none of them is left in a run that goes on
TODAY = {"moe_adapters": {"mtil-custom": "mtil-custom-DTD+EuroSAT"}, "zscl": {"mtil-custom": "mtil-custom-DTD+EuroSAT"}}
OTHER_BATCHES = {  # words that change a run's numbers
    "alta": ["train.batch_size=7"], "inflora": ["--batch_size", "7"], "it_prompt_cncm": ["batch_size=7"],
    "moe_adapters": ["--batch-size", "7"], "moe_adapters_cil": ["batch_size=7"], "vq_prompt": ["--batch_size", "7"],
    "zscl": ["--batch-size=7"], "zscl_cil": ["batch_size=7"],
}  # fmt: skip


def records(folder: Path) -> dict[tuple, float]:
    (path,) = folder.rglob("record.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {(line["protocol"], line["after_task"], line["dataset"], line["metric"]): line["value"] for line in lines}


def record_weights(folder: Path, run: Callable, capsys: pytest.CaptureFixture) -> None:
    """The stored runs recorded no checksum of the miniature's weights, which have changed since, and are refused for
    it alone; write today's into one."""
    with pytest.raises(SystemExit):
        run()
    message = capsys.readouterr().err
    missing = re.findall(r"^  weights\.?(\w*): None there, '(\w{32})' now$", message, re.MULTILINE)
    assert len(missing) == message.count(" there, ") > 0
    assert {md5 for _, md5 in missing} <= {hashlib.md5(path.read_bytes()).hexdigest() for path in (CLIP_FILE, VIT_FILE)}
    (config,) = folder.rglob("config.yaml")
    content = yaml.safe_load(config.read_text())
    content["settings"]["weights"] = dict(missing) if missing[0][0] else missing[0][1]
    config.write_text(yaml.safe_dump(content))
    (config.parent / CHECKSUMS).unlink()  # as a message tells those who changed a file by hand


@pytest.mark.parametrize("name", sorted(OTHER_BATCHES))
def test_the_same_command_takes_a_run_up(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    main, words = prepared(json.loads((RUNS / f"{name}.json").read_text()), tmp_path)
    shutil.copytree(FIRST_EDITION / name, tmp_path, dirs_exist_ok=True)
    before, today = records(tmp_path), TODAY.get(name, {})
    record_weights(tmp_path, lambda: main(words), capsys)
    main(words)
    assert records(tmp_path) == {(today.get(key[0], key[0]), *key[1:]): value for key, value in before.items()}
    assert len(before) > 9
    (config,) = tmp_path.rglob("config.yaml")
    assert yaml.safe_load(config.read_text())["labels"]["protocol"] in {key[0] for key in records(tmp_path)}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*words, *OTHER_BATCHES[name]])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and "holds a run with another configuration" in message
    assert "batch_size: " in message and message.count(" there, ") == 1
