"""Contrastive training: what belongs together shall lie nearer than what does not.

SwiFT has three types. Type 1, `instance`: two clips of one person that do not overlap are a pair, the clips of other
people in the batch are strangers. Type 2, `local`: a clip is changed twice, equal times of the two are a pair, its
other times are strangers. Type 3, `both`: the sum.

The public code of SwiFT says frames in its type 2 but averages over time first, and so compares two clips of a person,
each changed twice, with each other: `local="clips"`. It sums that over people, where we take the mean.

Source: Chen et al. (2020), SimCLR, for the loss; Dave et al. (2022), TCLR, for the types.

Legend: B clip; C channels; t token times; G groups; N pairs of a group; K numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.models.learners.contrastive import Contrastive
from pipeline.pretrain.augmentation import Augmentation
from pipeline.pretrain.objectives.batch import Batch

Kind = Literal["instance", "local", "both"]
Local = Literal["times", "clips"]
Augment = Callable[[Tensor, Sequence[np.random.Generator]], Tensor]


def nt_xent(first_GNK: Tensor, second_GNK: Tensor, temperature: float = 0.1, person_N: Tensor | None = None) -> Tensor:
    """Normalised temperature-scaled cross-entropy: each embedding must find its partner among its group.

    Parameters
    ----------
    first_GNK, second_GNK : partners at equal places; a group's other 2 N - 2 embeddings are strangers. Their lengths
        do not matter, only their cosines.
    person_N : whose each pair is; other pairs of the same person are no strangers and are left out. None: all differ.

    Source: Chen et al. (2020), equation 1, averaged over both directions.
    """
    both_GMK = functional.normalize(torch.cat([first_GNK, second_GNK], dim=1).float(), dim=-1)
    pairs, everyone = first_GNK.shape[1], both_GMK.shape[1]
    score_GMM = both_GMK @ both_GMK.transpose(1, 2) / temperature
    oneself_MM = torch.eye(everyone, dtype=torch.bool, device=score_GMM.device)
    partner_M = (torch.arange(everyone, device=score_GMM.device) + pairs) % everyone
    score_GMM = score_GMM.masked_fill(oneself_MM, -torch.inf)
    if person_N is not None:
        person_M = person_N.to(score_GMM.device).repeat(2)
        own_MM = (person_M[:, None] == person_M) & ~oneself_MM[partner_M]
        score_GMM = score_GMM.masked_fill(own_MM, -torch.inf)
    return functional.cross_entropy(score_GMM.flatten(0, 1), partner_M.repeat(len(score_GMM)))


@dataclass(frozen=True, eq=False)
class ContrastiveObjective:
    """Change clips, embed them, compare.

    Attributes
    ----------
    kind : SwiFT's type 1, 2 or 3.
    augment : clips and one generator a clip -> changed clips; what the generators draw decides all of it.
    local : what types 2 and 3 compare inside a person: the times of a clip, or its two clips.
    """

    learner: Contrastive
    kind: Kind = "instance"
    temperature: float = 0.1
    augment: Augment = field(default_factory=Augmentation)
    local: Local = "times"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.local not in get_args(Local):
            choices = f"kind {', '.join(get_args(Kind))} and local {', '.join(get_args(Local))}"
            raise ValueError(f"kind '{self.kind}' with local '{self.local}', where there are {choices}")
        if self.temperature <= 0:
            raise ValueError(f"a temperature of {self.temperature}, which must be above 0")

    @property
    def paired(self) -> bool:
        """Whether it reads `batch.pair` at all."""
        return needs_pair({"kind": self.kind, "local": self.local})

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss over the embeddings of a batch.

        Raises
        ------
        ValueError : clips of a batch without a second clip of the same person, where the objective compares them.
        """
        first = self._features(batch.clip, batch)
        loss = first.new_zeros((), dtype=torch.float32)
        if self.kind != "local":
            other = self._features(_pair(batch), batch)
            embed = self.learner.of_clips
            loss = loss + nt_xent(embed(first)[None], embed(other)[None], self.temperature, batch.person)
        if self.kind != "instance":
            loss = loss + self._local(first, batch)
        return loss

    def after_step(self, progress: float) -> None:
        """Nothing follows the weights."""

    def _local(self, first: Tensor, batch: Batch) -> Tensor:
        second = self._features(batch.clip, batch)
        if self.local == "times":
            return nt_xent(self.learner.of_times(first), self.learner.of_times(second), self.temperature)
        # Each sample is a group of its own here, so that no other of its person is among its strangers.
        others = [self._features(_pair(batch), batch) for _ in range(2)]
        views = [(first, others[0]), (second, others[1])]
        embedded = [torch.stack([self.learner.of_clips(each) for each in view], dim=1) for view in views]
        return nt_xent(embedded[0], embedded[1], self.temperature)

    def _features(self, clip: Tensor, batch: Batch) -> Tensor:
        return self.learner.encoder(self.augment(clip, batch.draws))


def needs_pair(options: Mapping[str, Any]) -> bool:
    """Whether the objective with these options of the configuration compares two clips of a run."""
    kind, local = options.get("kind", ContrastiveObjective.kind), options.get("local", ContrastiveObjective.local)
    return bool(kind != "local" or local == "clips")


def _pair(batch: Batch) -> Tensor:
    if batch.pair is None:
        raise ValueError("batches without a second clip a person, which this kind of contrast needs: give `pair`")
    return batch.pair
