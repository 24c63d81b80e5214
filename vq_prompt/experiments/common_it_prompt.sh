#!/usr/bin/env bash
# IT-Prompt (our reading) on common ground (docs/common-ground.md): ITPrompt or ITPromptCNCM, on cifar100, imagenet_r,
# cub200 or tinyimagenet, under seed 0, 1 or 2. DATA is the folder of the data sets. From the repository root:
#   DATA=/data bash vq_prompt/experiments/common_it_prompt.sh ITPromptCNCM imagenet_r 0
#   bash vq_prompt/experiments/common_it_prompt.sh ITPromptCNCM imagenet_r 0 --scale mini
set -euo pipefail
METHOD=${1:?method, data set, seed: ITPrompt imagenet_r 0} DATASET=${2:?data set, seed: imagenet_r 0} SEED=${3:?seed: 0}
NAME=$DATASET SIZE=20
case $DATASET in
  cifar100) NAME=CIFAR100 SIZE=10 ;;
  imagenet_r) NAME=ImageNet_R ;;
  cub200) NAME=CUB200 ;;
  tinyimagenet) NAME=TinyImageNet ;;
esac
exec "${PYTHON:-python}" -u -m vq_prompt.run --config vq_prompt/configs/cifar-100_it_prompt.yaml --learner_type it_prompt \
    --learner_name "$METHOD" --set dataset="$NAME" dataroot="${DATA:-data}" first_split_size="$SIZE" \
    other_split_size="$SIZE" --repeat 1 --seeds "$SEED" --protocol common \
    --log_dir "runs/common/$DATASET/$METHOD-seed$SEED" "${@:4}"
