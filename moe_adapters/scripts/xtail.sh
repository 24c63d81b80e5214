#!/usr/bin/env bash
# X-TAIL: ten data sets, 16 images a class, every test image among the classes of all ten. The protocol names neither
# rates, length nor threshold: they are those of the authors' few-shot script, without CIFAR100. From the repository
# root; --scale mini for the miniature.
# Order: Aircraft, Caltech101, DTD, EuroSAT, Flowers, Food, MNIST, OxfordPet, StanfordCars, SUN397.
set -euo pipefail
exec "${PYTHON:-python}" -m moe_adapters.main --train-mode=adapter --method finetune --train-dataset=xtail --few_shot=16 \
  --lr=8e-3,5e-4,5e-3,1e-3,1e-3,1e-2,1e-4,1e-2,1e-2,1e-2 --ls 0.2 --iterations 500 --batch-size 128 \
  --ffn_adapt_where AdapterDoubleEncoder --ffn_adapt --apply_moe --experts_num 22 \
  --is_train --frozen --frozen-path router11_experts22_1000iters_few_shot_v222 --repeat_train \
  --train_chooser --chooser-iterations 1000,300 \
  --eval-datasets=xtail --label-space all --autorouter --threshold=585e-4 \
  --save ckpt/xtail "$@"
