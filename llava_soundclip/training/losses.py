"""The paper's five losses (Table 7, F.4), over the pairs of one process or of several.

Shapes: f_a (B, D) are projected sounds, c (B, D) the CLS tokens of their pictures. Rows are pairs. N is the number of
pairs in all processes; N = B with one process. a2v finds the picture of a sound, v2a the sound of a picture.

With torch.distributed initialised, every loss is over all N pairs. Each process returns its part. The mean of the
parts is the loss of one batch of N, and the same holds for gradients, which DistributedDataParallel averages. Processes
may hold different numbers of pairs, or none.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from llava_soundclip.alignment.checks import as_number

TEMPERATURE = 0.07  # tau of F.4
STRENGTH = 0.02  # lambda of F.4


class _Gather(torch.autograd.Function):
    """Gather (B, D) to (N, D), the rows of all processes in their order; B may differ between processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], rank: int) -> Tensor:
        ctx.start, ctx.size = sum(sizes[:rank]), sizes[rank]
        padded = F.pad(x, (0, 0, 0, max(sizes) - len(x))).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(grad)  # other processes' losses depend on these rows too
        return grad[ctx.start : ctx.start + ctx.size], None, None


@dataclass
class _Batch:
    """The pairs of a step: this process's own, and those of all processes, gathered when a loss reads them."""

    own_f_a: Tensor
    own_c: Tensor
    sizes: list[int]
    rank: int

    @property
    def pairs(self) -> int:
        return sum(self.sizes)

    @property
    def own(self) -> slice:
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])

    @cached_property
    def f_a(self) -> Tensor:
        return self._gathered(self.own_f_a)

    @cached_property
    def c(self) -> Tensor:
        return self._gathered(self.own_c)

    def _gathered(self, x: Tensor) -> Tensor:
        return _Gather.apply(x, self.sizes, self.rank) if len(self.sizes) > 1 else x

    def mean(self, own_values: Tensor) -> Tensor:
        """This process's part of the mean over all N pairs, from the (B,) values of its own pairs."""
        return own_values.sum() * (len(self.sizes) / self.pairs)


class PairLoss(nn.Module, ABC):
    """Base of the losses.

    Args:
        gather: with several processes, compute the loss over all their pairs; every process must then call it. With
            False each process computes its own loss, such as for evaluation in one process only.
    """

    def __init__(self, *, gather: bool = True) -> None:
        super().__init__()
        self.gather = gather

    def forward(self, f_a: Tensor, c: Tensor) -> dict[str, Tensor]:
        """The loss of pairs, computed in float32, or in float64 if one of the inputs is float64.

        Args:
            f_a: (B, D) projected sounds, of any float dtype.
            c: (B, D) CLS tokens, of any float dtype.

        Returns:
            Scalar tensors by name: "loss" for backpropagation, and its parts, detached.

        Raises:
            ValueError: if the two aren't 2-D float tensors of one shape, there are too few pairs, or processes differ in
                width or precision.
        """
        for name, x in (("f_a", f_a), ("c", c)):
            if x.ndim != 2 or not x.is_floating_point():
                raise ValueError(f"Expected {name} (B, D) of floats, got {tuple(x.shape)} of {x.dtype}.")
        if f_a.shape != c.shape:
            raise ValueError(
                f"f_a and c must be pairs, row by row and of one width; got {tuple(f_a.shape)} and {tuple(c.shape)}."
            )
        dtype = torch.promote_types(torch.promote_types(f_a.dtype, c.dtype), torch.float32)
        f_a, c = f_a.to(dtype), c.to(dtype)
        sizes, rank = [len(f_a)], 0
        if self.gather and distributed.is_available() and distributed.is_initialized():
            sizes, rank = _all_sizes(f_a), distributed.get_rank()
        batch = _Batch(f_a, c, sizes, rank)
        if batch.pairs == 0:
            raise ValueError("There are no pairs: B is 0.")
        with torch.autocast(f_a.device.type, enabled=False):
            loss, parts = self.terms(batch)
        return {"loss": loss} | {name: part.detach() for name, part in parts.items()}

    @abstractmethod
    def terms(self, batch: _Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and its parts by name."""


class Cosine(PairLoss):
    """1 - cos(f_a, c), averaged over pairs. The only part is "cosine", the mean of the cosines."""

    def terms(self, batch: _Batch) -> tuple[Tensor, dict[str, Tensor]]:
        cosines = (_unit(batch.own_f_a) * _unit(batch.own_c)).sum(1)
        return batch.mean(1 - cosines), {"cosine": batch.mean(cosines)}


class MSE(PairLoss):
    """(f_a - c)^2, averaged over pairs and dimensions. The only part is "mse", the same value."""

    def terms(self, batch: _Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = batch.mean((batch.own_f_a - batch.own_c).square().mean(1))
        return loss, {"mse": loss}


class DistributionMatching(PairLoss):
    """L_dist of F.4, on unnormalised f_a: lambda |mu_a - mu_v|^2 + lambda |sigma_a - sigma_v|^2.

    mu and sigma (D,) are the mean and the standard deviation (with N - 1) of each dimension over the pairs of all
    processes. The squares are summed over dimensions, as by the norm. The parts are "mean" and "deviation", without
    lambda. The loss ignores the pairing: alone it can't tell which picture belongs to which sound.

    Args:
        strength: lambda, 0 or more.
        gather: see `PairLoss`.

    Raises:
        ValueError: if `strength` is out of range; when called, if there are fewer than 2 pairs in all.
    """

    def __init__(self, *, strength: float = STRENGTH, gather: bool = True) -> None:
        super().__init__(gather=gather)
        self.strength = as_number(strength)
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"strength (lambda) must be a number of 0 or more, got {strength!r}.")

    def terms(self, batch: _Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if batch.pairs < 2:
            raise ValueError("Distribution matching needs 2 pairs or more: one has no deviation.")
        means = (batch.f_a.mean(0) - batch.c.mean(0)).square().sum()
        deviations = (batch.f_a.std(0) - batch.c.std(0)).square().sum()
        return self.strength * (means + deviations), {"mean": means, "deviation": deviations}

    def extra_repr(self) -> str:
        return f"strength={self.strength}"


class InfoNCE(PairLoss):
    """L_NCE of F.4, in both directions, on cosines: every other pair of all processes is a negative.

        -1/(2N) sum_i [log e^(cos(f_a^i, c^i)/tau) / sum_j e^(cos(f_a^i, c^j)/tau)
                     + log e^(cos(c^i, f_a^i)/tau) / sum_j e^(cos(c^i, f_a^j)/tau)]

    The parts are "a2v" and "v2a", each a mean over pairs; the loss is half their sum. A single pair has no negatives, so
    its loss is 0.

    Args:
        tau: the temperature, above 0.
        chunk: None holds all B x N cosines in memory. A number holds chunk x chunk of them at a time and computes them
            again for the gradient. Memory then grows with N instead of its square, and the gradient can't be
            differentiated again.
        gather: see `PairLoss`.

    Raises:
        ValueError: if `tau` or `chunk` is out of range.
    """

    def __init__(self, *, tau: float = TEMPERATURE, chunk: int | None = None, gather: bool = True) -> None:
        super().__init__(gather=gather)
        self.tau = as_number(tau)
        if not 0 < self.tau < math.inf:
            raise ValueError(f"tau must be a number above 0, got {tau!r}.")
        if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
            raise ValueError(f"chunk must be an int of 1 or more, or None, got {chunk!r}.")
        self.chunk = chunk

    def terms(self, batch: _Batch) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = _unit(batch.f_a), _unit(batch.c)
        own_x, own_y = x[batch.own], y[batch.own]
        if len(batch.sizes) == 1:
            over_c, over_f_a = self._log_sums(x, y)
        else:
            over_c, over_f_a = self._log_sums(own_x, y)[0], self._log_sums(x, own_y)[1]
        positives = (own_x * own_y).sum(1) / self.tau
        a2v, v2a = batch.mean(over_c - positives), batch.mean(over_f_a - positives)
        return (a2v + v2a) / 2, {"a2v": a2v, "v2a": v2a}

    def _log_sums(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Logs of the sums of e^(x . y / tau): over all y for each x, and over all x for each y."""
        if self.chunk is not None:
            return _TiledLogSums.apply(x, y, self.tau, self.chunk)
        logits = x @ y.T / self.tau
        return logits.logsumexp(1), logits.logsumexp(0)

    def extra_repr(self) -> str:
        return f"tau={self.tau}, chunk={self.chunk}"


class InfoNCEDistribution(PairLoss):
    """L = L_NCE + L_dist (F.4), SoundCLIP's loss, with the parts of both.

    Args:
        tau: see `InfoNCE`.
        strength: see `DistributionMatching`.
        chunk: see `InfoNCE`.
        gather: see `PairLoss`.

    Raises:
        ValueError: as for `InfoNCE` and `DistributionMatching`.
    """

    def __init__(
        self,
        *,
        tau: float = TEMPERATURE,
        strength: float = STRENGTH,
        chunk: int | None = None,
        gather: bool = True,
    ) -> None:
        super().__init__(gather=gather)
        self.infonce = InfoNCE(tau=tau, chunk=chunk)
        self.distribution = DistributionMatching(strength=strength)

    def terms(self, batch: _Batch) -> tuple[Tensor, dict[str, Tensor]]:
        contrast, directions = self.infonce.terms(batch)
        distance, moments = self.distribution.terms(batch)
        return contrast + distance, directions | moments


LOSSES: dict[str, type[PairLoss]] = {
    "cosine": Cosine,
    "mse": MSE,
    "distribution": DistributionMatching,
    "infonce": InfoNCE,
    "infonce+distribution": InfoNCEDistribution,
}


def make_loss(name: str, **options: Any) -> PairLoss:
    """Make a loss by its name in `LOSSES`.

    Args:
        name: name of a loss, such as "infonce+distribution".
        options: arguments of its class.

    Raises:
        ValueError: if there is no such loss, it has no such option, or an option is out of range.
    """
    if name not in LOSSES:
        raise ValueError(f"There is no loss {name!r}; known: {', '.join(LOSSES)}.")
    known = signature(LOSSES[name]).parameters
    if not options.keys() <= known.keys():
        unknown = ", ".join(option for option in options if option not in known)
        raise ValueError(f"The loss {name!r} has no option {unknown}; it has {', '.join(known)}.")
    return LOSSES[name](**options)


class _TiledLogSums(torch.autograd.Function):
    """`InfoNCE._log_sums` with no more than chunk x chunk logits at a time, in the backward pass as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, tau: float, chunk: int) -> tuple[Tensor, Tensor]:
        over_y, over_x = x.new_full((len(x),), -math.inf), y.new_full((len(y),), -math.inf)
        for rows, columns in _tiles(len(x), len(y), chunk):
            logits = (x[rows] @ y[columns].T).div_(tau)
            over_y[rows] = over_y[rows].logaddexp(logits.logsumexp(1))
            over_x[columns] = over_x[columns].logaddexp(logits.logsumexp(0))
        ctx.save_for_backward(x, y, over_y, over_x)
        ctx.tau, ctx.chunk = tau, chunk
        ctx.set_materialize_grads(False)
        return over_y, over_x

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_over_y: Tensor | None, grad_over_x: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, y, over_y, over_x = ctx.saved_tensors
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        grad_y = torch.zeros_like(y) if ctx.needs_input_grad[1] else None
        with torch.autocast(x.device.type, enabled=False):
            for rows, columns in _tiles(len(x), len(y), ctx.chunk):
                logits = (x[rows] @ y[columns].T).div_(ctx.tau)
                slopes = torch.zeros_like(logits)
                if grad_over_y is not None:
                    softmax = (logits - over_y[rows, None]).exp_()
                    slopes.addcmul_(softmax, grad_over_y[rows, None], value=1 / ctx.tau)
                if grad_over_x is not None:
                    softmax = (logits - over_x[columns]).exp_()
                    slopes.addcmul_(softmax, grad_over_x[columns], value=1 / ctx.tau)
                if grad_x is not None:
                    grad_x[rows].addmm_(slopes, y[columns])
                if grad_y is not None:
                    grad_y[columns].addmm_(slopes.T, x[rows])
        return grad_x, grad_y, None, None


def _tiles(height: int, width: int, chunk: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, height, chunk):
        for left in range(0, width, chunk):
            yield slice(top, top + chunk), slice(left, left + chunk)


def _unit(x: Tensor) -> Tensor:
    """Scale rows to length 1. A row of zeros stays zero, and its gradient is finite."""
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(norms > 0, norms, 1.0)


def _all_sizes(x: Tensor) -> list[int]:
    """B of every process, after a check that all have the same width and precision."""
    here = torch.tensor([*x.shape, x.element_size()], device=x.device)
    everywhere = [torch.empty_like(here) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everywhere, here)
    table = [row.tolist() for row in everywhere]
    if len({tuple(row[1:]) for row in table}) > 1:
        widths = ", ".join(f"{width} in float{8 * size}" for _, width, size in table)
        raise ValueError(f"The processes' tensors differ in width or precision: {widths}.")
    return [row[0] for row in table]
