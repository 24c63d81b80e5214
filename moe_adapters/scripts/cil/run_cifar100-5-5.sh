#!/usr/bin/env bash
# MoE-Adapters, class-incremental: CIFAR100 in 20 tasks of 5 classes. From the repository root:
#   bash moe_adapters/scripts/cil/run_cifar100-5-5.sh dataset_root=/data
#   bash moe_adapters/scripts/cil/run_cifar100-5-5.sh --scale mini
set -euo pipefail
exec "${PYTHON:-python}" -m moe_adapters.cil --config-path configs/class \
  --config-name cifar100_5-5-MoE-Adapters.yaml dataset_root="../datasets/" class_order="class_orders/cifar100.yaml" \
  "$@"
