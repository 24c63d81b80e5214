#!/usr/bin/env bash
# MTIL order I, full-shot: DDAS, adapters of eleven tasks, all checkpoints on all test sets. From the repository root:
#   bash moe_adapters/scripts/train_full_shot_order1.sh --data-location /data
#   bash moe_adapters/scripts/train_full_shot_order1.sh --scale mini
# Learning rates in the order Aircraft, Caltech101, CIFAR100, DTD, EuroSAT, Flowers, Food, MNIST, OxfordPet,
# StanfordCars, SUN397 (upstream train_full_shot_router11_experts22_1000iters.sh).
set -euo pipefail
exec "${PYTHON:-python}" -m moe_adapters.main --train-mode=adapter --method finetune --train-dataset=order1 \
  --lr=5e-3,1e-3,5e-3,1e-3,1e-4,1e-3,1e-3,1e-4,1e-3,1e-3,1e-3 --ls 0.2 --iterations 1000 \
  --ffn_adapt_where AdapterDoubleEncoder --ffn_adapt --apply_moe --experts_num 22 \
  --is_train --frozen --frozen-path frozen_list_experts_1000epoch22 --repeat_train \
  --train_chooser --chooser-iterations 1000,300 \
  --eval-datasets=order1 --autorouter --threshold=655e-4 \
  --save ckpt/full_shot_order1 "$@"
