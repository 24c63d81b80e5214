#!/usr/bin/env bash
# All classes at once, the upper bound, on CIFAR-100, RN50; task-IL masked by the ten tasks of the other rows.
# From the repository root; further flags are handed on, --scale mini runs it on the miniature.
set -euo pipefail
exec "${PYTHON:-python}" -m alta.main --config-file alta/configs/joint_cifar100.yaml --visual RN50 --joint_task_classes 10 "$@"
