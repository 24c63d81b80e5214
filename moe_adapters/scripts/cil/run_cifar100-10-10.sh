#!/usr/bin/env bash
# MoE-Adapters, class-incremental: CIFAR100 in 10 tasks of 10 classes. From the repository root:
#   bash moe_adapters/scripts/cil/run_cifar100-10-10.sh dataset_root=/data
#   bash moe_adapters/scripts/cil/run_cifar100-10-10.sh --scale mini
set -euo pipefail
exec "${PYTHON:-python}" -m moe_adapters.cil --config-path configs/class \
  --config-name cifar100_10-10-MoE-Adapters.yaml dataset_root="../datasets/" class_order="class_orders/cifar100.yaml" \
  "$@"
