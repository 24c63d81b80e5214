#!/usr/bin/env bash
# A method on common ground (docs/common-ground.md), with its values for CIFAR-100, on ImageNet-R those for ImageNet-R:
# inflora, inflorab5 or infloraca, on cifar100, imagenet_r, cub200 or tinyimagenet, under seed 0, 1 or 2, on the ViT
# clip-vit-b16 or sup21k. DATA is the folder of the data sets. From the repository root:
#   DATA=/data bash inflora/scripts/common.sh inflora imagenet_r 0 clip-vit-b16
#   bash inflora/scripts/common.sh inflora imagenet_r 0 clip-vit-b16 --scale mini
set -euo pipefail
METHOD=${1:?method, data set, seed, ViT: inflora imagenet_r 0 sup21k} DATASET=${2:?data set, seed, ViT: imagenet_r 0 sup21k}
SEED=${3:?seed, ViT: 0 sup21k} VIT=${4:?ViT: sup21k} CONFIG=cifar100 NAME=$DATASET SIZE=20
case $DATASET in
  cifar100) SIZE=10 ;;
  imagenet_r) CONFIG=mimg10 NAME=ImageNet_R ;;
esac
exec "${PYTHON:-python}" -m inflora.main --config "inflora/configs/${CONFIG}_$METHOD.json" --backbone "$VIT" \
  --dataset "$NAME" --data-path "${DATA:-data}" --init-cls "$SIZE" --increment "$SIZE" --seed "$SEED" \
  --protocol common --save "runs/common/$DATASET/$VIT" "${@:5}"
