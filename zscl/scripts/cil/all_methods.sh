#!/usr/bin/env bash
# Every method on one class-incremental setting, one run after the other; cifar100_10-10 unless another one that has all
# the files comes first (cifar100_5-5, cifar100_2-2, imagenet100_10-10, imagenet100_50-5). From the repository root:
#   bash zscl/scripts/cil/all_methods.sh cifar100_5-5 dataset_root=/data
#   bash zscl/scripts/cil/all_methods.sh --scale mini
# All arguments go to every run, so the folders stay those of the configurations: save=... would be one for all.
set -euo pipefail
SETTING=cifar100_10-10
case "${1:-}" in
  *_*-*) [[ $1 == *=* ]] || { SETTING=$1 && shift; } ;;
esac
RUN="$(dirname "$0")/run_experiment.sh"
bash "$RUN" "$SETTING-finetune.yaml" "$@" method=zeroshot
for METHOD in finetune LwF_only iCaRL LwF ZSCL; do
  bash "$RUN" "$SETTING-$METHOD.yaml" "$@"
done
