#!/usr/bin/env bash
# A method on common ground (docs/common-ground.md), with its values for CIFAR100: MoE-Adapters, on cifar100, imagenet_r,
# cub200 or tinyimagenet, under seed 0, 1 or 2. DATA is the folder of the data sets. From the repository root:
#   DATA=/data bash moe_adapters/scripts/common.sh MoE-Adapters imagenet_r 0
#   bash moe_adapters/scripts/common.sh MoE-Adapters imagenet_r 0 --scale mini
set -euo pipefail
METHOD=${1:?method, data set, seed: MoE-Adapters imagenet_r 0} DATASET=${2:?data set, seed: imagenet_r 0}
SEED=${3:?seed: 0} SIZE=20
[[ $DATASET != cifar100 ]] || SIZE=10
exec "${PYTHON:-python}" -m moe_adapters.cil --config-path configs/class --config-name cifar100_10-10-MoE-Adapters.yaml \
  method="$METHOD" dataset="$DATASET" dataset_root="${DATA:-data}" initial_increment="$SIZE" increment="$SIZE" \
  seed="$SEED" protocol=common save="runs/common/$DATASET/$METHOD-seed$SEED" "${@:4}"
