#!/usr/bin/env bash
# A method on common ground (docs/common-ground.md), with its values for CIFAR-100: oritext_mlp2cprompt_oriimg (ALTA),
# cprompt_resmlp or another --method, on cifar100, imagenet_r, cub200 or tinyimagenet, under seed 0, 1 or 2. DATA is the
# folder of the data sets. From the repository root:
#   DATA=/data bash alta/scripts/common.sh oritext_mlp2cprompt_oriimg imagenet_r 0
#   bash alta/scripts/common.sh oritext_mlp2cprompt_oriimg imagenet_r 0 --scale mini
set -euo pipefail
METHOD=${1:?method, data set, seed: cprompt_resmlp imagenet_r 0} DATASET=${2:?data set, seed: imagenet_r 0}
SEED=${3:?seed: 0} SIZE=20
[[ $DATASET != cifar100 ]] || SIZE=10
exec "${PYTHON:-python}" -m alta.main --config-file alta/configs/il_cifar100.yaml --method "$METHOD" --visual ViT-B/16 \
  "dataset.name=seq-$DATASET" "dataset.n_classes_per_task=$SIZE" "--${DATASET}_dir" "${DATA:-data}" --seed "$SEED" \
  --protocol common --save "runs/common/$DATASET/$METHOD-seed$SEED" "${@:4}"
