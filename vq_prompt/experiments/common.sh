#!/usr/bin/env bash
# A method on common ground (docs/common-ground.md), with its values for CIFAR-100, on ImageNet-R and CUB-200 those for
# these: VQPrompt, VQPrompt-S, NCM or LinearProbe, on cifar100, imagenet_r, cub200 or tinyimagenet, under seed 0, 1 or 2,
# on the ViT clip-vit-b16 or sup21k. DATA is the folder of the data sets. From the repository root:
#   DATA=/data bash vq_prompt/experiments/common.sh VQPrompt imagenet_r 0 clip-vit-b16
#   bash vq_prompt/experiments/common.sh VQPrompt imagenet_r 0 clip-vit-b16 --scale mini
set -euo pipefail
METHOD=${1:?method, data set, seed, ViT: NCM imagenet_r 0 sup21k} DATASET=${2:?data set, seed, ViT: imagenet_r 0 sup21k}
SEED=${3:?seed, ViT: 0 sup21k} VIT=${4:?ViT: sup21k} CONFIG=cifar-100 NAME=$DATASET SIZE=20 OWN=(--prompt_param 10 8 1)
case $DATASET in
  cifar100) NAME=CIFAR100 SIZE=10 ;;
  imagenet_r) CONFIG=imnet-r NAME=ImageNet_R ;;
  cub200) CONFIG=cub-200 NAME=CUB200 OWN=(--prompt_param 10 8 5 --ca_batch_size_ratio 2) ;;
  tinyimagenet) NAME=TinyImageNet ;;
esac
[[ $METHOD != *-S ]] || OWN+=(--adaptive_pred)
exec "${PYTHON:-python}" -u -m vq_prompt.run --config "vq_prompt/configs/${CONFIG}_prompt_vq.yaml" --learner_type prompt \
    --learner_name "${METHOD%-S}" "${OWN[@]}" --pretrained_weight "$VIT" --set dataset="$NAME" dataroot="${DATA:-data}" \
    first_split_size="$SIZE" other_split_size="$SIZE" --repeat 1 --seeds "$SEED" --protocol common \
    --log_dir "runs/common/$DATASET/$METHOD-$VIT-seed$SEED" "${@:5}"
