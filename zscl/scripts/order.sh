# What an order's scripts share; they source it. An optional first argument chooses the order, 1 (default) or 2; the
# arguments left in "$@" are handed on to `python -m zscl.main`, so a later flag overrides one that stands here.
#   ORDER            1 or 2
#   SEQUENCE         flags of a run over the order's eleven tasks in one process, each from the checkpoint before it
#   EVALUATION       every checkpoint on every test set
#   SLOW_MNIST_RATES the learning rates of the two scripts that learn MNIST at 1e-5 as well
case "${1:-}" in
  1 | 2) ORDER=$1 && shift ;;
  "" | -* | *=*) ORDER=1 ;;
  *) echo "error: the order is 1 or 2, not $1. Flags come behind it." >&2 && exit 2 ;;
esac
# 5e-5 for Aircraft and MNIST, 1e-5 for the others.
if [ "$ORDER" = 1 ]; then # Aircraft Caltech101 CIFAR100 DTD EuroSAT Flowers Food MNIST OxfordPet StanfordCars SUN397
  RATES=5e-5,1e-5,1e-5,1e-5,1e-5,1e-5,1e-5,5e-5,1e-5,1e-5,1e-5
  SLOW_MNIST_RATES=5e-5,1e-5,1e-5,1e-5,1e-5,1e-5,1e-5,1e-5,1e-5,1e-5,1e-5
else # StanfordCars Food MNIST OxfordPet Flowers SUN397 Aircraft Caltech101 DTD EuroSAT CIFAR100
  RATES=1e-5,1e-5,5e-5,1e-5,1e-5,1e-5,5e-5,1e-5,1e-5,1e-5,1e-5
  SLOW_MNIST_RATES=1e-5,1e-5,1e-5,1e-5,1e-5,1e-5,5e-5,1e-5,1e-5,1e-5,1e-5
fi
EVALUATION=(--eval-datasets="order$ORDER")
SEQUENCE=(--train-mode=whole --train-dataset="order$ORDER" --lr="$RATES" --ls 0.2 --iterations 1000 "${EVALUATION[@]}")
