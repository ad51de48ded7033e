"""Muon for hidden matrices, AdamW for everything else: one optimizer, also under ZeRO.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces the momentum of a matrix by
the nearest orthogonal one. ZeRO's flat tensors hold pieces of matrices: the momentum is updated
where it lies, and a matrix in pieces is put together on one rank, orthogonalised there, and cut up
again. One matrix per rank is whole at a time.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, zip_longest
from typing import Any, NamedTuple

import torch
import torch.distributed as torch_dist
from torch import Tensor

# Of Jordan et al. 2024: steep at zero; singular values end between about 0.7 and 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# The root mean square of AdamW's updates, which Muon's are scaled to, so that a learning rate and a
# decay tuned for AdamW stay (Liu et al. 2025, "Muon is scalable for LLM training", §2.2).
UPDATE_RMS = 0.2

_LEAST_NORM = 1e-15  # a matrix of zeros stays one
_BATCH = 1 << 22  # elements of whole matrices that are orthogonalised in one go


def orthogonalise(matrices: Tensor) -> Tensor:
    """Set the singular values of matrices (b, m, n) to about 1 by five Newton–Schulz steps.

    Each step takes a quintic polynomial of the singular values. Computed in the dtype given.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=torch.float32)
    x = x / norm.clamp_min(_LEAST_NORM).to(x.dtype)  # no singular value above 1
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class Matrices(NamedTuple):
    """A parameter of a Muon group: matrices below one another, in pieces on the ranks."""

    rows: tuple[int, ...]  # of each matrix
    columns: int
    held: tuple[tuple[int, int], ...]  # each rank's (start, end) in the flattened parameter
    flat_start: int  # where this rank's piece begins in its flat tensor


class _Matrix(NamedTuple):
    """One matrix: how many of its elements each rank holds, in their order, and where."""

    rows: int
    columns: int
    held: list[int]
    flat_start: int  # of this rank's elements in its flat tensor

    @property
    def numel(self) -> int:
        return self.rows * self.columns

    @property
    def work(self) -> int:
        return self.numel * min(self.rows, self.columns)


class _Plan(NamedTuple):
    """What this rank does with the matrices of one flat tensor."""

    own: list[list[_Matrix]]  # whole here: batches of equal shapes
    turns: list[tuple[_Matrix | None, ...]]  # in pieces: which matrix each rank makes in a turn


class Muon(torch.optim.AdamW):
    """Muon on the groups that say how their matrices are stacked, fused AdamW on the others.

    A Muon group has `splits`: for each of its parameters the rows of the matrices in it.
    `found_inf`, where it is set, is a float tensor, the same on all ranks: with 1 a step leaves
    weights, moments and step counts as they are, as torch's fused AdamW does.
    `is_measured`: whether a step also writes its `squares`.
    Under ZeRO 1 to 3 steps are collective, and `attach` must have said what lies where.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        momentum: float,
    ) -> None:
        super().__init__(list(groups), lr=lr, betas=betas, eps=eps, fused=True)
        self.momentum = momentum
        self.is_measured = False
        # ‖Δw‖² and ‖w₀‖² of the last step that was measured, (2,) for each tensor of matrices.
        self.squares: dict[Tensor, Tensor] = {}
        self._splits: dict[Tensor, tuple[int, ...]] = {
            parameter: rows
            for group in self.param_groups
            for parameter, rows in zip(group["params"], group.get("splits", ()), strict=False)
        }
        self._plans: dict[Tensor, _Plan] = {}
        self._rank, self._world_size = 0, 1
        self._device: torch.device | None = None  # where to orthogonalise; None: where it lies
        self._dtype = torch.float32

    def rows_of(self, parameter: Tensor) -> tuple[int, ...]:
        """The rows of each matrix in a parameter that the optimizer was made with."""
        return self._splits[parameter]

    def attach(
        self,
        placed: Sequence[tuple[Tensor, list[Matrices]]],
        *,
        rank: int,
        world_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Take over ZeRO's flat tensors, in place of the parameters; the same order on all ranks.

        placed: each flat tensor with what all ranks hold of its matrices.
        device, dtype: where and in what matrices are orthogonalised, and sent.
        """
        self._rank, self._world_size = rank, world_size
        self._device, self._dtype = device, dtype
        work = [0] * world_size
        self._plans = {flat: _plan(matrices, rank, work) for flat, matrices in placed}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step on the gradients of the groups present: ZeRO shows one of them at a time."""
        assert closure is None
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if "splits" not in group]
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if "splits" in group:
                for parameter in group["params"]:
                    self._step(parameter, group)

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        if parameter.grad is None:
            return
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["momentum_buffer"] = torch.zeros_like(parameter)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.item():
            return
        state["step"] += 1
        squares = None
        if self.is_measured:
            squares = torch.zeros(2, dtype=torch.float64, device=parameter.device)
            self.squares[parameter] = squares
        flat = _Flat(
            parameter.detach().view(-1),
            parameter.grad.reshape(-1),
            state["momentum_buffer"].view(-1),
            squares,
        )
        plan = self._plan_of(parameter)
        for batch in plan.own:
            pieces = [(matrix, matrix.numel) for matrix in batch]
            whole = torch.stack(self._directions(flat, pieces))
            whole = whole.view(len(batch), batch[0].rows, batch[0].columns)
            flat.apply(orthogonalise(whole).flatten(1).unbind(), batch, group)
        for turn in plan.turns:
            found = list(self._orthogonal_pieces(flat, turn))
            flat.apply([piece for _, piece in found], [matrix for matrix, _ in found], group)

    def _plan_of(self, parameter: Tensor) -> _Plan:
        if parameter not in self._plans:
            rows = self._splits[parameter]  # a whole parameter, the same on every rank
            held = ((0, parameter.numel()),)
            matrices = Matrices(rows, parameter.numel() // sum(rows), held, 0)
            self._plans[parameter] = _plan([matrices], 0, [0])
        return self._plans[parameter]

    def _directions(
        self, flat: "_Flat", pieces: Sequence[tuple[_Matrix, int]]
    ) -> tuple[Tensor, ...]:
        """Update the momenta of this rank's elements; return them with Nesterov's look ahead.

        pieces: of each matrix so many elements.
        """
        places = [(matrix.flat_start, numel) for matrix, numel in pieces]
        gradients = [flat.gradient.narrow(0, *place) for place in places]
        momenta = [flat.momentum.narrow(0, *place) for place in places]
        torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
        ahead = torch._foreach_lerp(gradients, momenta, self.momentum)
        return tuple(a.to(device=self._device, dtype=self._dtype) for a in ahead)

    def _orthogonal_pieces(
        self, flat: "_Flat", turn: tuple[_Matrix | None, ...]
    ) -> Iterator[tuple[_Matrix, Tensor]]:
        """This rank's pieces of the matrices of one turn, each made by one rank. Collective."""
        mine = turn[self._rank]
        sizes = [matrix.held[self._rank] if matrix else 0 for matrix in turn]
        gathered = mine.held if mine else [0] * self._world_size
        held = [(matrix, n) for matrix, n in zip(turn, sizes, strict=True) if matrix and n]
        sent = (
            torch.cat(self._directions(flat, held))
            if held
            else torch.empty(0, device=self._device, dtype=self._dtype)
        )
        whole = sent.new_empty(sum(gathered))
        torch_dist.all_to_all_single(whole, sent, gathered, sizes)
        if mine:
            whole = orthogonalise(whole.view(1, mine.rows, mine.columns)).reshape(-1)
        torch_dist.all_to_all_single(sent, whole, sizes, gathered)
        for matrix, piece in zip(turn, torch.split(sent, sizes), strict=True):
            if matrix and len(piece):
                yield matrix, piece


class _Flat(NamedTuple):
    """A parameter or a flat tensor of ZeRO's, as vectors."""

    weight: Tensor
    gradient: Tensor
    momentum: Tensor
    squares: Tensor | None  # (2,) of the update and of the weights before it, to be added to

    def apply(
        self, orthogonal: Sequence[Tensor], matrices: Sequence[_Matrix], group: dict[str, Any]
    ) -> None:
        """Take the step of this rank's elements of some matrices, with decoupled decay."""
        if not matrices:
            return
        places = [
            (matrix.flat_start, len(o)) for matrix, o in zip(matrices, orthogonal, strict=True)
        ]
        weights = [self.weight.narrow(0, *place) for place in places]
        made = [o.to(w.device, w.dtype) for o, w in zip(orthogonal, weights, strict=True)]
        # Entries of an orthogonal (m, n) matrix have a mean square of 1 ÷ max(m, n).
        sides = [max(matrix.rows, matrix.columns) for matrix in matrices]
        torch._foreach_mul_(made, [-group["lr"] * UPDATE_RMS * math.sqrt(side) for side in sides])
        torch._foreach_add_(made, weights, alpha=-group["lr"] * group["weight_decay"])
        if self.squares is not None:
            for square, tensors in zip(self.squares, (made, weights), strict=True):
                norms = torch._foreach_norm(tensors, dtype=torch.float64)
                square += torch.stack(norms).square().sum()
        torch._foreach_add_(weights, made)


def square_norm(x: Tensor) -> Tensor:
    """The sum of squares, in double precision."""
    norm: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
    return norm.square()


def _plan(placed: list[Matrices], rank: int, work: list[int]) -> _Plan:
    """Share the matrices of a flat tensor among the ranks; the same result on all of them.

    work: of each rank so far, added to.
    """
    matrices = [matrix for parameter in placed for matrix in _stacked(parameter, rank)]
    matrices.sort(key=lambda m: (-m.work, m.rows))
    own: list[_Matrix] = []
    shared: list[list[_Matrix]] = [[] for _ in work]
    for matrix, maker in zip(matrices, _makers(matrices, work), strict=True):
        if matrix.held[maker] < matrix.numel:
            shared[maker].append(matrix)
        elif maker == rank:
            own.append(matrix)
    return _Plan(list(_batches(own)), list(zip_longest(*shared)))


def _makers(matrices: list[_Matrix], work: list[int]) -> list[int]:
    """Which rank orthogonalises each matrix.

    A rank that holds most of one makes it, so that little is sent (under ZeRO 1 and 2 nearly all
    lie whole on one rank), as long as its share is fair; whoever has least to do makes the others.
    """
    fair = (sum(work) + sum(m.work for m in matrices)) / len(work)
    makers: list[int | None] = []
    for matrix in matrices:
        most = max(matrix.held)
        holder = matrix.held.index(most)
        stays = 3 * most > 2 * matrix.numel and work[holder] < fair
        makers.append(holder if stays else None)
        work[holder] += matrix.work if stays else 0
    found = []
    for matrix, maker in zip(matrices, makers, strict=True):
        if maker is None:
            maker = work.index(min(work))
            work[maker] += matrix.work
        found.append(maker)
    return found


def _stacked(parameter: Matrices, rank: int) -> Iterator[_Matrix]:
    """The matrices of a parameter, with what each rank holds of them."""
    start, end = 0, 0
    for rows in parameter.rows:
        start, end = end, end + rows * parameter.columns
        overlaps = [(max(low, start), min(high, end)) for low, high in parameter.held]
        held = [max(0, high - low) for low, high in overlaps]
        # Pieces are joined in the order of the ranks.
        begins = [low for (low, _), numel in zip(overlaps, held, strict=True) if numel]
        assert sum(held) == end - start, "the ranks do not hold a matrix once"
        assert begins == sorted(begins), "the ranks hold a matrix in another order than theirs"
        offset = max(0, start - parameter.held[rank][0])
        yield _Matrix(rows, parameter.columns, held, parameter.flat_start + offset)


def _batches(matrices: list[_Matrix]) -> Iterator[list[_Matrix]]:
    """Split a sorted list into batches of equal shapes and bounded size."""
    for (rows, columns), equal in groupby(matrices, key=lambda m: (m.rows, m.columns)):
        batch = list(equal)
        most = max(1, _BATCH // (rows * columns))
        for first in range(0, len(batch), most):
            yield batch[first : first + most]
