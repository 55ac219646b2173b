"""The low-rank route: the leading eigenvectors of formed matrices, as many as their certificates ask for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from igm_fast import ops  # noqa: F401 - registers torch.ops.igm_fast
from igm_fast.projector.base import Projector
from igm_fast.projector.certificate import Evidence, Facts, tail_from_probes
from igm_fast.projector.functions import SpectralFunction
from igm_fast.sketch import FAILURE_PROBABILITY

MAX_RANK = 128
# Columns of a block of the Krylov space: as few as a product with C still handles at full speed.
BLOCK = 16
# Ritz pairs are first looked at when the space has three blocks.
FIRST_LOOK = 3 * BLOCK
# Directions that are computed beyond those that may be kept, for residuals and ‖E‖ to come down: d/4, but no more than
SURPLUS = 12 * BLOCK
# Bounds fall about with this inverse power of the number of directions (0.6 to 0.7 for trained networks).
FALL = 0.65


def truncated(
    layers: Sequence[Tensor],
    facts: Sequence[Facts],
    function: SpectralFunction,
    tol: float,
    starts: Sequence[Tensor | None],
    *,
    doubt: bool,
) -> list[Projector | None]:
    """Return T = cI + U(Σ − cI)Uᵀ of each C, or None where rank min(d/8, 128) does not reach ``tol``.

    A block Krylov space grows by :data:`BLOCK` directions a product, and nothing of it is computed twice, until its
    Ritz pairs prove the bound (:mod:`igm_fast.projector.certificate`).

    Args:
        layers: ``[groups, d, d]`` each, all of one d, dtype and device: every product is one call for all of them.
        facts: of each.
        function: f.
        tol: the bound to reach.
        starts: ``[groups, d, k]`` or None: directions to start from, such as the basis of an earlier T.
        doubt: give up where the bound is too far from ``tol`` to get there.
    """
    dim = layers[0].shape[1]
    limit = min(dim // 8, MAX_RANK)
    most = limit + min(dim // 4, SURPLUS)
    found: list[Projector | None] = [None] * len(layers)
    if limit == 0:
        return found
    C = layers[0] if len(layers) == 1 else torch.cat(list(layers))
    generator = torch.Generator().manual_seed(dim)
    block = _first_block(layers, starts, generator)
    basis = image = block[:, :, :0]
    waiting = dict(zip(range(len(layers)), _places(layers), strict=True))
    looks, look = 0, FIRST_LOOK
    while waiting and basis.shape[2] < most:
        block, product = torch.ops.igm_fast.krylov_block(C, basis, block[:, :, : dim - basis.shape[2]])
        basis, image = torch.cat([basis, block], dim=2), torch.cat([image, product], dim=2)
        block = product
        if product.shape[2] > BLOCK:  # a start: of what C makes of it, a sample of the directions leads on
            block = product @ torch.randn(product.shape[2], BLOCK, generator=generator, dtype=C.dtype).to(C.device)
        size = basis.shape[2]
        if size < min(look, most):
            continue
        eigenvalues, vectors, residuals = torch.ops.igm_fast.ritz_pairs(basis, image)
        looks += 1
        missing = 1.0
        for layer, place in list(waiting.items()):
            evidence = Evidence(eigenvalues[place], vectors[place], residuals[place], facts[layer])
            found[layer], ratio = _certify(C[place], evidence, function, tol, limit, looks, generator)
            missing = max(missing, ratio)
            if found[layer] is not None or (doubt and size * ratio**FALL > most):
                del waiting[layer]
        look = max(size + BLOCK, int(size * missing**FALL))  # a look costs as much as two to four products
    return found


def _places(layers: Sequence[Tensor]) -> list[slice]:
    """Where the groups of each layer are when all are in one tensor."""
    ends = torch.tensor([len(layer) for layer in layers]).cumsum(dim=0).tolist()
    return [slice(end - len(layer), end) for end, layer in zip(ends, layers, strict=True)]


def _first_block(layers: Sequence[Tensor], starts: Sequence[Tensor | None], generator: torch.Generator) -> Tensor:
    """Cω for Gaussian ω, with the starts before it; as many columns in all as a multiple of BLOCK.

    Each ω has 8·BLOCK entries that are not zero: so few rows of C give, nearly for free, what a product would.
    """
    dim = layers[0].shape[1]
    known = max((start.shape[2] for start in starts if start is not None), default=0)
    width = min(BLOCK * (-(-known // BLOCK) + 1), dim)
    rows = torch.randperm(dim, generator=generator)[: 8 * BLOCK].to(layers[0].device)
    blocks = []
    for layer, start in zip(layers, starts, strict=True):
        given = layer[:, :, :0] if start is None else start[:, :, :width].to(layer)
        weights = torch.randn(width - given.shape[2], len(rows), generator=generator, dtype=layer.dtype)
        weights = weights.to(layer.device)
        blocks.append(torch.cat([given, (weights @ layer[:, rows]).mT], dim=2))
    return torch.cat(blocks)


def _certify(
    C: Tensor,
    evidence: Evidence,
    function: SpectralFunction,
    tol: float,
    limit: int,
    looks: int,
    generator: torch.Generator,
) -> tuple[Projector | None, float]:
    """The projector, or None and the ratio to ``tol`` of the bound that can be expected at the moment.

    Where nothing is known of that, the ratio that asks for a quarter more directions.
    """
    unknown = 1.25 ** (1 / FALL)
    if not (evidence.eigenvalues[:, 0] > 0).all():  # numerically zero: leave it to the other routes
        return None, unknown
    expected = evidence.propose(function, tol, evidence.likely_tail(), limit)
    if expected.bound > tol:
        return None, expected.bound / tol if math.isfinite(expected.bound) else unknown
    proposal = evidence.propose(function, tol, evidence.certain_tail, limit)
    if proposal.bound <= tol:
        return evidence.accept(function, proposal, 0.0), 1.0
    tail = tail_from_probes(C, evidence.vectors, generator) + evidence.skew
    proposal = evidence.propose(function, tol, torch.minimum(tail, evidence.certain_tail), limit)
    if proposal.bound > tol:
        return None, proposal.bound / tol if math.isfinite(proposal.bound) else unknown
    # Each look may have asked the probes, and which of them is the last depends on the answers.
    return evidence.accept(function, proposal, FAILURE_PROBABILITY * looks * len(C)), 1.0
