#!/usr/bin/env bash
# Evaluate the authors' released full-shot checkpoints (a folder of <data set>.pth and <data set>_autochooser.pth), or
# any folder of that layout: bash moe_adapters/scripts/test_full_shot_order1.sh --load FOLDER. From the repository root.
set -euo pipefail
exec "${PYTHON:-python}" -m moe_adapters.main --train-mode=adapter --eval-only --train-dataset=order1 --eval-datasets=order1 \
  --load ckpt/full_shot_order1_1000iters \
  --ffn_adapt_where AdapterDoubleEncoder --ffn_adapt --apply_moe --experts_num 22 \
  --autorouter --threshold=655e-4 \
  --save ckpt/test_full_shot_order1 "$@"
