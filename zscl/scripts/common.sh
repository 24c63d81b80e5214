#!/usr/bin/env bash
# A method on common ground (docs/common-ground.md), with its values for CIFAR100: finetune, lwf, lwfvr, iCaRL, ZSCL,
# zeroshot, or joint, fine-tuning on all classes at once; on cifar100, imagenet_r, cub200 or tinyimagenet, under seed 0, 1
# or 2. DATA is the folder of the data sets. From the repository root:
#   DATA=/data bash zscl/scripts/common.sh ZSCL imagenet_r 0
#   bash zscl/scripts/common.sh ZSCL imagenet_r 0 --scale mini
set -euo pipefail
METHOD=${1:?method, data set, seed: ZSCL imagenet_r 0} DATASET=${2:?data set, seed: imagenet_r 0} SEED=${3:?seed: 0}
CONFIG=$METHOD SIZE=20
case $METHOD in
  zeroshot) CONFIG=finetune ;;
  lwf) CONFIG=LwF_only ;;
  lwfvr) CONFIG=LwF ;;
esac
[[ $DATASET != cifar100 ]] || SIZE=10
[[ $METHOD != joint ]] || CONFIG=finetune METHOD=finetune SIZE=$((10 * SIZE))
exec "${PYTHON:-python}" -m zscl.cil --config-path configs/class --config-name "cifar100_10-10-$CONFIG.yaml" \
  method="$METHOD" dataset="$DATASET" dataset_root="${DATA:-data}" initial_increment="$SIZE" increment="$SIZE" \
  seed="$SEED" protocol=common save="runs/common/$DATASET/$1-seed$SEED" "${@:4}"
