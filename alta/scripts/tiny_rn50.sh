#!/usr/bin/env bash
# ALTA, TinyImageNet in ten tasks of twenty classes, RN50.
# From the repository root; further flags are handed on, --scale mini runs it on the miniature.
set -euo pipefail
exec "${PYTHON:-python}" -m alta.main --config-file alta/configs/il_tiny.yaml --visual RN50 "$@"
