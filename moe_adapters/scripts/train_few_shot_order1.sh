#!/usr/bin/env bash
# MTIL order I, five images a class, as the authors' script of 2024-08-30. Their first script, behind the released
# few-shot checkpoint: add --preset fewshot_v1 --save ckpt/few_shot_order1_v1. From the repository root.
set -euo pipefail
exec "${PYTHON:-python}" -m moe_adapters.main --train-mode=adapter --method finetune --train-dataset=order1 --few_shot=5 \
  --lr=8e-3,5e-4,2e-4,5e-3,1e-3,1e-3,1e-2,1e-4,1e-2,1e-2,1e-2 --ls 0.2 --iterations 500 \
  --ffn_adapt_where AdapterDoubleEncoder --ffn_adapt --apply_moe --experts_num 22 \
  --is_train --frozen --frozen-path router11_experts22_1000iters_few_shot_v222 --repeat_train \
  --train_chooser --chooser-iterations 1000,300 \
  --eval-datasets=order1 --autorouter --threshold=585e-4 \
  --save ckpt/few_shot_order1 "$@"
