"""The space of old tasks and the design of B_t: InfLoRA (arXiv 2404.00228), its method section and DualGPM.

Letters are the paper's. Its B_t (r, d), designed here, is the code's lora_A; its A_t (d, r), trained, is lora_B.

    H_t      (d, n)  the input of a layer, one column a token of the new task
    C        (d, d)  H_t H_t^T / n, not centred: same left singular vectors, singular values squared
    M_t      (d, k)  orthonormal basis of the space of the old tasks' gradients, or of what is left beside it

The original calls it `feature_list`, with "remove" for a basis of the old tasks' space and "retain" for one of the rest
(methods/inflora.py:L121-L157, L321-L463). All thresholds are on the squared singular values of C, as there: on fourth
powers of those of H_t, where the paper and GPM speak of squares.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.training.distributed import sum_over_processes
from common.training.numerics import full_precision
from common.vit import embed
from inflora.lora import Network


@dataclass
class Memory:
    """What a layer remembers of its old tasks: M (d, k), and whether M spans their space or the free one."""

    basis: Tensor
    free: bool = False

    def free_part(self, C: Tensor) -> Tensor:
        """C (d, d) projected onto the free space: the part of its columns outside the old tasks' space.

        Only the left factor is projected, as upstream, so the outcome is not symmetric.
        """
        inside = self.basis @ (self.basis.t() @ C)
        return inside if self.free else C - inside

    def state_dict(self) -> dict[str, object]:
        return {"basis": self.basis.cpu(), "free": self.free}


def threshold(lamb: float, lame: float, task: int, sessions: int) -> float:
    """epsilon_th of a task: from lamb towards lame, which not even the last of `sessions` tasks reaches.

    Upstream methods/inflora.py:L321-L323; `sessions` is total_sessions, however many tasks there are.
    """
    return lamb + (lame - lamb) * task / sessions


@torch.no_grad()
def second_moments(network: Network, batches: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """C of every layer with LoRA, over all tokens of all images: (d, d) each, in the model's dtype and on its device.

    One product a layer and batch, summed where it is computed. No block runs beyond the last input that is needed.
    """
    vit: Any = network.image_encoder
    layers, tokens = len(network.attentions), 0
    sums: list[Any] = [0.0] * layers
    for images, _ in batches:
        with network.autocast():
            x = embed(vit, images)
            tokens += x.shape[0] * x.shape[1]
            for layer, block in enumerate(vit.blocks[:layers]):
                H_transposed = block.norm1(x).flatten(0, 1)
                with full_precision():
                    sums[layer] = sums[layer] + H_transposed.t() @ H_transposed
                if layer + 1 < layers:
                    x = block(x)
    tokens = int(sum_over_processes(torch.tensor(tokens)))
    return [sum_over_processes(total) / tokens for total in sums]


@full_precision()
def design(C: Tensor, memory: Memory | None, rank: int) -> Tensor:
    """B_t (r, d): the main directions of the new task's inputs, outside the space of the old ones.

    Rows are unit vectors over sqrt(3), the expected norm of a row that LoRA's usual initialisation draws. Where the
    free space has fewer than r dimensions, the last rows are what the decomposition fills up with.
    """
    C_hat = C if memory is None else memory.free_part(C)
    U, _, _ = torch.linalg.svd(C_hat)
    return U[:, :rank].t() / 3**0.5


@full_precision()
def remember(C: Tensor, memory: Memory | None, epsilon: float, dual: bool) -> Memory:
    """The memory of a layer after a task whose inputs, under the trained model, have the second moment C (d, d).

    dual: DualGPM, which keeps a basis of the smaller of the two spaces: at most d / 2 columns. Otherwise plain GPM.
    Both describe the same spaces.
    """
    if memory is None:
        return _first_memory(C, epsilon, dual)
    return _smaller_free_space(C, memory, epsilon) if memory.free else _larger_old_space(C, memory, epsilon, dual)


def _first_memory(C: Tensor, epsilon: float, dual: bool) -> Memory:
    """As many directions as stay below epsilon: one fewer than in GPM, and at least one (inflora.py:L329-L347)."""
    U, S, _ = torch.linalg.svd(C)
    energy = S.double().square().cpu()
    count = max(int((energy.cumsum(0) / energy.sum() < epsilon).sum()), 1)
    if dual and count >= len(C) / 2:
        # upstream calls the old tasks' basis itself the free one in this case, and fails on it later
        return Memory(U[:, count:], free=True)
    return Memory(U[:, :count])


def _larger_old_space(C: Tensor, memory: Memory, epsilon: float, dual: bool) -> Memory:
    """Add to M until it holds epsilon of C's energy, with the direction that crosses it (inflora.py:L355-L385)."""
    d, held = memory.basis.shape
    U, S, _ = torch.linalg.svd(memory.free_part(C))
    energy, total = S.double().square().cpu(), C.double().square().sum().cpu()
    before = (total - energy.sum() + energy.cumsum(0) - energy) / total  # energy held before adding each direction
    count = int((before < epsilon).sum())
    basis = torch.cat([memory.basis, U[:, : min(count, d - held)]], dim=1)
    if dual and basis.shape[1] > d / 2:
        return Memory(orthogonal_complement(basis), free=True)
    return Memory(basis)


def _smaller_free_space(C: Tensor, memory: Memory, epsilon: float) -> Memory:
    """Take directions of C out of the free space until it holds no more than 1 - epsilon (inflora.py:L386-L411).

    In the coordinates of M: U spans the free space, so what is left of it needs no second decomposition.
    """
    U, S, _ = torch.linalg.svd(memory.basis.t() @ C, full_matrices=False)
    energy, total = S.double().square().cpu(), C.double().square().sum().cpu()
    left = (energy.sum() - energy.cumsum(0) + energy) / total  # energy in the free space before taking each direction
    count = int((left >= 1 - epsilon).sum())
    return Memory(memory.basis @ U[:, count:], free=True)


def orthogonal_complement(basis: Tensor) -> Tensor:
    """An orthonormal basis (d, d - k) of what is orthogonal to an orthonormal one (d, k)."""
    return torch.linalg.qr(basis, mode="complete").Q[:, basis.shape[1] :]
