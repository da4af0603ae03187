"""Where in the brain a score comes from: Integrated Gradients of what is read from clips, and a test of its labels.

What is explained is a number that a network says of a clip: a linear read-out of a frozen encoder's mean feature, or an
output of a network trained on labels. The path runs from a baseline to the clip; what the columns are given adds up to
the difference of the scores at its ends. The baseline 0 is a scan in which nothing happens; a clip of another person is
nearer to what the network knows. In the demo scores at 0 lie 14 to 25 SD from those of people, and effects of labels
scatter 2.3 times as much as with a person for a baseline.

Integrated Gradients are linear in the read-out. So those of a few components of the features serve every read-out of
them, those fitted to shuffled labels too, and a test of a thousand shuffles costs as many gradients as there are
components, not a thousand times as many.

Source: Sundararajan et al. (2017), Axiomatic attribution for deep networks; Winkler et al. (2014) for the largest
statistic under permutations.

Axes: B clips, T frames, C columns of a store (voxels, parcels, pixels), P parcels, D features, K components of them, N
people, L labelings (row 0: the true one).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.evaluate.splits import partition
from pipeline.models.parts.voxels import Raster

FOLDS = 5  # of people; a person is explained by a read-out that was fitted on the others
SHRINKAGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the ridge, in units of the mean variance of components


class ReadOut(nn.Module):
    """Linear read-outs `(B, K)` of an encoder's feature, averaged over tokens, of packed clips `(B, T, C)`.

    Parameters
    ----------
    raster : where the columns lie in what the encoder sees.
    directions_DK : weights on the mean feature; centre_D : what is taken away from it before.
    """

    def __init__(self, encoder: nn.Module, raster: Raster, directions_DK: np.ndarray, centre_D: np.ndarray) -> None:
        super().__init__()
        self.encoder, self.raster = encoder, raster
        device = raster.index_V.device
        self.directions_DK = torch.as_tensor(directions_DK, dtype=torch.float32, device=device)
        self.centre_D = torch.as_tensor(centre_D, dtype=torch.float32, device=device)

    def forward(self, clips_BTC: Tensor) -> Tensor:
        """One number a clip and direction."""
        features: Tensor = self.encoder(self.raster.lay(clips_BTC))
        mean_BD = features.flatten(2).mean(-1) if features.ndim > 2 else features
        return (mean_BD.float() - self.centre_D) @ self.directions_DK


def integrated_gradients(
    score: nn.Module,
    inputs: Tensor,
    output: int = 0,
    steps: int = 32,
    baseline: Tensor | None = None,
    batch: int = 16,
) -> np.ndarray:
    """Attributions of one output of a network, of the shape of `inputs`.

    Parameters
    ----------
    score : inputs `(B, ...)` to outputs `(B, K)`: a `ReadOut`, a network trained on labels, anything differentiable.
    steps : points of the Gauss-Legendre rule along the path; exact for gradients that are polynomials of degree
        2 steps - 1 along it.
    baseline : where paths begin, of the shape of `inputs`; None: 0.
    batch : points that go through the network at once.
    """
    from captum.attr import IntegratedGradients

    inputs = inputs.detach()
    with torch.enable_grad(), _Still(score):
        found: Tensor = IntegratedGradients(score).attribute(
            inputs,
            baselines=torch.zeros_like(inputs) if baseline is None else baseline,
            target=output,
            n_steps=steps,
            method="gausslegendre",
            internal_batch_size=max(batch, len(inputs)),
        )
    return np.asarray(found.detach().float().cpu())


class _Still:
    """No gradients of weights while those of inputs are taken, and no dropout."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.training = module, module.training
        self.learning = [weight for weight in module.parameters() if weight.requires_grad]

    def __enter__(self) -> None:
        self.module.eval()
        for weight in self.learning:
            weight.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        self.module.train(self.training)
        for weight in self.learning:
            weight.requires_grad_(True)


@torch.no_grad()
def completeness_error(
    score: nn.Module, inputs: Tensor, attributed_BK: np.ndarray, baseline: Tensor | None = None
) -> float:
    """How far sums of attributions are from the differences of scores that they divide: RMS error over RMS difference.

    Parameters
    ----------
    attributed_BK : total attribution of each clip, for each output of `score`.
    """
    start = torch.zeros_like(inputs) if baseline is None else baseline
    moved_BK = np.asarray((score(inputs) - score(start)).float().cpu(), dtype=float)
    scale = np.sqrt((moved_BK**2).mean())
    return float(np.sqrt(((attributed_BK - moved_BK) ** 2).mean()) / scale) if scale > 0 else float("nan")


def by_parcel(values_xC: np.ndarray, parcel_C: np.ndarray, parcels: int) -> np.ndarray:
    """(..., P) sums over the columns of each parcel; a column of parcel -1 belongs to none."""
    flat_XC = values_xC.reshape(-1, values_xC.shape[-1])
    inside_C = parcel_C >= 0
    total_XP = np.zeros((len(flat_XC), parcels))
    for total_P, value_C in zip(total_XP, flat_XC, strict=True):
        total_P += np.bincount(parcel_C[inside_C], value_C[inside_C], minlength=parcels)
    return total_XP.reshape(*values_xC.shape[:-1], parcels)


def edges_to_parcels(edges_xRR: np.ndarray) -> np.ndarray:
    """(..., R) attributions of connectomes: half of each edge goes to either of its parcels."""
    return np.asarray((edges_xRR.sum(-1) + edges_xRR.sum(-2)) / 2)


# --- read-outs -------------------------------------------------------------------------------------------------------


class Components(NamedTuple):
    """Leading principal components of features, of unit variance over people: `(features - centre_D) @ basis_DK`."""

    centre_D: np.ndarray
    basis_DK: np.ndarray

    def of(self, features_ND: np.ndarray) -> np.ndarray:
        """(N, K) components."""
        return np.asarray((features_ND - self.centre_D) @ self.basis_DK)


def leading_components(features_ND: np.ndarray, count: int) -> Components:
    """At most `count` components, found without any label; each feature is first put in units of its SD."""
    centre_D, sd_D = features_ND.mean(0), features_ND.std(0)
    unit_D = np.divide(1, sd_D, out=np.zeros_like(sd_D), where=sd_D > 1e-9 * max(float(sd_D.max()), 1e-300))
    _, length_K, basis_KD = np.linalg.svd((features_ND - centre_D) * unit_D, full_matrices=False)
    kept = int(min(count, (length_K > 1e-6 * max(float(length_K[0]), 1e-300)).sum()))
    scale_K = np.sqrt(len(features_ND)) / length_K[:kept]
    return Components(centre_D, unit_D[:, None] * basis_KD[:kept].T * scale_K)


def ridge_directions(components_NK: np.ndarray, targets_LN: np.ndarray) -> np.ndarray:
    """(L, K) ridge read-outs of centred targets, each with the shrinkage of least squared leave-one-out error.

    Leaving out is exact and in closed form: residual / (1 - leverage).
    """
    centred_NK = components_NK - components_NK.mean(0)
    targets_LN = targets_LN - targets_LN.mean(1, keepdims=True)
    left_NR, length_R, right_RK = np.linalg.svd(centred_NK, full_matrices=False)
    unit, projected_LR = float((length_R**2).mean()) or 1.0, targets_LN @ left_NR
    errors_SL, found_SLK = [], []
    for shrinkage in SHRINKAGES:
        gain_R = length_R**2 / (length_R**2 + shrinkage * unit)
        leverage_N = (left_NR**2 * gain_R).sum(1) + 1 / len(centred_NK)
        residual_LN = (targets_LN - (projected_LR * gain_R) @ left_NR.T) / np.maximum(1 - leverage_N, 1e-6)
        errors_SL.append((residual_LN**2).sum(1))
        found_SLK.append((projected_LR * (length_R / (length_R**2 + shrinkage * unit))) @ right_RK)
    best_L = np.argmin(errors_SL, axis=0)
    return np.asarray(np.array(found_SLK)[best_L, np.arange(len(targets_LN))])


def cross_fitted(
    components_NK: np.ndarray,
    targets_LN: np.ndarray,
    strata_N: np.ndarray,
    families_N: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """(L, N, K) the read-out that each person is explained by: fitted on people of other folds, families undivided.

    `strata_N` (0 or 1) is what folds are balanced on. Scores of the people fitted on have unit SD.
    """
    fold_N = partition(strata_N, families_N, [1 / FOLDS] * FOLDS, rng)
    directions_LNK = np.zeros((*targets_LN.shape, components_NK.shape[1]))
    for fold in np.unique(fold_N):
        seen_N = fold_N != fold
        found_LK = ridge_directions(components_NK[seen_N], targets_LN[:, seen_N])
        spread_L1 = (components_NK[seen_N] @ found_LK.T).std(0)[:, None]
        scaled_LK = np.divide(found_LK, spread_L1, out=np.zeros_like(found_LK), where=spread_L1 > 1e-12)
        directions_LNK[:, ~seen_N] = scaled_LK[:, None]
    return directions_LNK


# --- the test --------------------------------------------------------------------------------------------------------


def shuffled(target_N: np.ndarray, explained_N: np.ndarray, shuffles: int, rng: np.random.Generator) -> np.ndarray:
    """(1 + shuffles, N) the target, then shuffles of it among those explained and among the others.

    Shuffled apart, so that those explained keep their mixture of classes; that is exact under the null hypothesis too.
    """
    targets_LN = np.repeat(np.asarray(target_N, dtype=float)[None], 1 + shuffles, axis=0)
    for part_N in (explained_N, ~explained_N):
        for target in targets_LN[1:]:
            target[part_N] = rng.permutation(target[part_N])
    return targets_LN


def label_effects(attributed_LNP: np.ndarray, targets_LN: np.ndarray) -> np.ndarray:
    """(L, P) slope of each parcel's attribution on the target: for classes 0 and 1, the difference of their means.

    Over all parcels it adds up to the difference of the classes' mean scores, so it says where they are told apart.
    """
    centred_LN = targets_LN - targets_LN.mean(1, keepdims=True)
    power_L1 = (centred_LN**2).sum(1, keepdims=True)
    slope_LP = np.einsum("ln,lnp->lp", centred_LN, attributed_LNP)
    return np.divide(slope_LP, power_L1, out=np.zeros_like(slope_LP), where=power_L1 > 1e-12)


class Tested(NamedTuple):
    """Each part's z against what shuffled labels give, and p corrected over all parts by the largest |z|."""

    z_P: np.ndarray
    p_P: np.ndarray


def permutation_test(statistic_LP: np.ndarray) -> Tested:
    """Test row 0 against the other rows, in both directions.

    Every part is put in units of its own SD over all rows, the true one among them, so that large parts do not decide;
    p is the share of rows whose largest |z| is at least the part's: exact, however parts hang together.
    """
    sd_P = statistic_LP.std(0)
    centred_LP = statistic_LP - statistic_LP.mean(0)
    varies_P = sd_P > 1e-12 * max(float(sd_P.max()), 1e-300)
    z_LP = np.divide(centred_LP, sd_P, out=np.zeros_like(centred_LP), where=varies_P)
    largest_L = np.abs(z_LP).max(1)
    return Tested(z_LP[0], (largest_L[:, None] >= np.abs(z_LP[0]) - 1e-9).mean(0))


def chance_interval(statistic_LP: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """(P,) ends of the interval that holds `confidence` of what shuffled labels gave, part by part, uncorrected."""
    low_P, high_P = np.quantile(statistic_LP[1:], [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low_P, high_P


def balanced_people(strata_N: np.ndarray, families_N: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(N,) True for `count` people, strata in turn, so that they hold equally many as far as they can.

    Within a stratum one person a family comes first.
    """
    order = rng.permutation(len(strata_N))
    _, first = np.unique(families_N[order], return_index=True)
    ordered = np.concatenate([order[np.sort(first)], np.delete(order, first)])
    seen: dict[int, int] = {}
    turn_N = np.empty(len(strata_N), dtype=int)
    for person in ordered:
        turn_N[person] = seen[strata_N[person]] = seen.get(strata_N[person], -1) + 1
    place_N = np.argsort(ordered)  # ties between strata: in the order drawn
    chosen_N = np.zeros(len(strata_N), dtype=bool)
    chosen_N[np.lexsort((place_N, turn_N))[:count]] = True
    return chosen_N
