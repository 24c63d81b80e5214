#!/usr/bin/env bash
# MTIL order II, full-shot. The authors published no script for it: learning rates are order I's, data set by data
# set, and the DDAS threshold is order I's. From the repository root; --scale mini for the miniature.
# Order: StanfordCars, Food, MNIST, OxfordPet, Flowers, SUN397, Aircraft, Caltech101, DTD, EuroSAT, CIFAR100.
set -euo pipefail
exec "${PYTHON:-python}" -m moe_adapters.main --train-mode=adapter --method finetune --train-dataset=order2 \
  --lr=1e-3,1e-3,1e-4,1e-3,1e-3,1e-3,5e-3,1e-3,1e-3,1e-4,5e-3 --ls 0.2 --iterations 1000 \
  --ffn_adapt_where AdapterDoubleEncoder --ffn_adapt --apply_moe --experts_num 22 \
  --is_train --frozen --frozen-path frozen_list_experts_1000epoch22 --repeat_train \
  --train_chooser --chooser-iterations 1000,300 \
  --eval-datasets=order2 --autorouter --threshold=655e-4 \
  --save ckpt/full_shot_order2 "$@"
