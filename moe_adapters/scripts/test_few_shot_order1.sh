#!/usr/bin/env bash
# Evaluate the authors' released 5-shot checkpoints (threshold 0.06), or any folder of that layout with --load FOLDER.
# From the repository root.
set -euo pipefail
exec "${PYTHON:-python}" -m moe_adapters.main --train-mode=adapter --eval-only --train-dataset=order1 --eval-datasets=order1 \
  --load ckpt/few_shot_order1_1000iters --few_shot=5 \
  --ffn_adapt_where AdapterDoubleEncoder --ffn_adapt --apply_moe --experts_num 22 \
  --autorouter --threshold=600e-4 \
  --save ckpt/test_few_shot_order1 "$@"
