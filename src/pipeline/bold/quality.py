"""What a run's quality is measured by, what it must reach, and the one way a bad run leaves the study: quarantine.

`Watch` looks at the blocks of a run while they pass on their way into a shard; what it keeps grows with the number of
frames by a few numbers and a fixed sample of columns. Axes: T frames, t frames of a block, V columns (in-mask voxels
of the template, or parcels), S columns of the sample, F frequencies, X, Y, Z of the template's grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from pipeline.config import Quality

SAMPLE = 1000  # columns: their share of high frequencies is within 4 % of that of 20,000, in three runs
HIGH_HZ = 0.1  # upper edge of the band that resting-state studies keep
# Power above it, over that of white noise. Unfiltered: .32 to 1.15 in 657 people of ABIDE (11 sites, TR 1.5 to 3 s),
# .39 to .68 in 8 of HCP (TR .72 s), .58 to .85 in three voxelwise runs. The same through Butterworth filters of order
# 2 to 5 (0.01-0.1 Hz, forward and back) or an ideal one: .0015 to .089.
FILTERED_BELOW = 0.15
LEAST_SECONDS = 60.0  # a shorter run has too few frequencies to tell
LEAST_HIGH = 0.125  # of the frequencies must lie above HIGH_HZ: TR up to 4.3 s
# Likenesses of a run to its own T1w, as it lies and mirrored, count as equal within this share of the larger. The raw
# run of studyforrest, registered rigidly: .515 and .357. Only the own T1w can tell: the likeness to an asymmetric
# template (NLin6Asym, 2 mm) less that to its mirror image is .001 .026 .008 for three runs, and .013 -.011 .002 for
# the same three mirrored beforehand.
SIDE_MARGIN = 0.05

Side: TypeAlias = Literal["as it lies", "mirrored", "undecided"]


class Quarantined(Exception):
    """This run is left out, with a reason; the rest of the study goes on."""


# --- one pass ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Traces:
    """A run as one pass over it shows it.

    `dvars_T` is the root mean square over live voxels of the change from the frame before (the first is 0; Power et
    al. 2012), `global_T` the mean over live voxels, both in the run's own unit; `sample_TS` are the columns `place_S`,
    spread evenly over those that are not constant.
    """

    tr_s: float
    dvars_T: np.ndarray
    global_T: np.ndarray
    sample_TS: np.ndarray
    place_S: np.ndarray
    zero_frames: int

    @property
    def frames(self) -> int:
        """T, the frames."""
        return len(self.dvars_T)


class Watch:
    """Looks at the blocks of a run as they pass, once and in order: `spool(watch(blocks), columns)`."""

    def __init__(self, columns: int, tr_s: float) -> None:
        self._columns, self._tr_s = columns, tr_s
        # Columns are patch-major, so that an even spread over them is one over the brain.
        self._place_S = np.unique(np.linspace(0, columns - 1, min(columns, SAMPLE)).astype(int))
        self._before_V: np.ndarray | None = None
        self._squares: list[float] = []
        self._sums: list[float] = []
        self._sample: list[np.ndarray] = []
        self._zero_frames = 0

    def __call__(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same blocks, each looked at."""
        for block_tV in blocks:
            self.update(block_tV)
            yield block_tV

    def update(self, block_tV: np.ndarray) -> None:
        """Look at the next (t, V) float32 frames."""
        self._sums += block_tV.sum(axis=1).tolist()
        self._sample.append(block_tV[:, self._place_S])
        for row_V in block_tV:
            self._squares.append(self._change(row_V))
            self._zero_frames += not row_V.any()
            self._before_V = row_V
        self._before_V = None if self._before_V is None else self._before_V.copy()  # a block's memory may be used again

    def _change(self, row_V: np.ndarray) -> float:
        if self._before_V is None:
            return 0.0
        change_V = row_V - self._before_V
        return float(change_V @ change_V)

    def traces(self, mean_V: np.ndarray, std_V: np.ndarray) -> Traces:
        """What was seen, given the mean and SD that the spool took of each column; SD 0 is a constant column."""
        live_V = std_V > 0
        count = max(1, int(live_V.sum()))
        sample_TS = np.concatenate(self._sample) if self._sample else np.zeros((0, len(self._place_S)), np.float32)
        live_S = live_V[self._place_S]
        return Traces(
            tr_s=self._tr_s,
            dvars_T=np.sqrt(np.array(self._squares) / count),  # a constant column adds nothing to the squares
            global_T=(np.array(self._sums) - float(mean_V[~live_V].sum())) / count,
            sample_TS=sample_TS[:, live_S],
            place_S=self._place_S[live_S],
            zero_frames=self._zero_frames,
        )


def mean_spectrum(sample_TS: np.ndarray, tr_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies in Hz without zero, (F,), and the mean power of columns of unit variance there; of white noise 1.

    One Hann window over the run, after a linear trend is taken off: without it the strong low frequencies would leak
    over those that a filter has emptied. No columns, or fewer than four frames: (0,).
    """
    from scipy import signal

    if sample_TS.shape[1] == 0 or len(sample_TS) < 4:
        return np.zeros(0), np.zeros(0)
    level_S = np.abs(sample_TS.mean(axis=0, dtype=np.float64))
    rest_TS = signal.detrend(sample_TS.astype(np.float64), axis=0)
    rest_TS = rest_TS[:, rest_TS.std(axis=0) > 1e-6 * level_S]
    window_T1 = signal.windows.hann(len(rest_TS), sym=False)[:, None]
    power_FS = np.abs(np.fft.rfft(rest_TS / rest_TS.std(axis=0) * window_T1, axis=0)[1:]) ** 2
    frequency_F = np.fft.rfftfreq(len(rest_TS), tr_s)[1:]
    if power_FS.shape[1] == 0:
        return np.zeros(0), np.zeros(0)
    power_F = power_FS.mean(axis=1)
    return frequency_F, power_F / power_F.mean()


def high_frequency(sample_TS: np.ndarray, tr_s: float) -> float | None:
    """Power above 0.1 Hz over that of white noise of the same variance; None where the run cannot tell."""
    frequency_F, power_F = mean_spectrum(sample_TS, tr_s)
    high_F = frequency_F > HIGH_HZ
    if len(sample_TS) * tr_s < LEAST_SECONDS or not len(high_F) or high_F.mean() < LEAST_HIGH:
        return None
    return float(power_F[high_F].mean())


# --- measures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measures:
    """Every measure of a run; None is one that cannot be had, and is never judged."""

    frames: int
    tr_s: float
    seconds: float
    zero_frames: int  # zero everywhere
    coverage: float  # share of columns with a signal
    constant_voxels: float | None  # share of the voxels in the run's own brain that never change
    overlap: float | None  # Dice of the run's brain and the template's mask, on the whole grid
    similarity: float | None  # local correlation of mean image and template, 0 to 1
    left_right: Side
    tsnr: float  # median over voxels of mean over SD in time
    mean_fd_mm: float | None  # framewise displacement
    max_fd_mm: float | None
    moved: float | None  # share of frames displaced by more than quality.fd_spike_mm
    dvars_percent: float | None  # mean change between frames, percent of the mean signal
    max_dvars: float | None  # the largest, over the median
    high_frequency: float | None  # power above 0.1 Hz, over that of white noise
    filtered: bool | None  # high_frequency is that of a band-passed run

    def plain(self) -> dict[str, Any]:
        """For JSON: six digits."""
        return {name: _short(value) for name, value in asdict(self).items()}


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def measure(
    traces: Traces,
    mean_V: np.ndarray,
    std_V: np.ndarray,
    spike_mm: float = 0.5,
    fd_mm_T: np.ndarray | None = None,
    placed: Mapping[str, float | None] | None = None,
    left_right: Mapping[str, Any] | None = None,
) -> Measures:
    """Every measure of a run.

    Parameters
    ----------
    traces, mean_V, std_V : what one pass over the run told.
    spike_mm : framewise displacement above which a frame counts as moved (`quality.fd_spike_mm`).
    fd_mm_T : framewise displacement, mm; None: no motion file.
    placed : `placement` of a run of voxels; None for one of parcels.
    left_right : similarity to the own T1w `as_is` and `mirrored`; None: there is none.
    """
    high = high_frequency(traces.sample_TS, traces.tr_s)
    return Measures(
        frames=traces.frames,
        tr_s=traces.tr_s,
        seconds=traces.frames * traces.tr_s,
        zero_frames=traces.zero_frames,
        coverage=float(np.mean(std_V > 0)),
        left_right=side(left_right),
        tsnr=temporal_snr(mean_V, std_V),
        high_frequency=high,
        filtered=None if high is None else high < FILTERED_BELOW,
        **(placed or dict.fromkeys(("constant_voxels", "overlap", "similarity"))),
        **_displaced(fd_mm_T, spike_mm, traces.frames),
        **_changed(traces, mean_V, std_V),
    )


def _displaced(fd_mm_T: np.ndarray | None, spike_mm: float, frames: int) -> dict[str, float | None]:
    if fd_mm_T is None:
        return dict.fromkeys(("mean_fd_mm", "max_fd_mm", "moved"))
    if fd_mm_T.shape != (frames,) or not np.isfinite(fd_mm_T).all():
        raise ValueError(f"framewise displacement of shape {fd_mm_T.shape}, or not finite, of {frames} frames")
    moved = float(np.mean(fd_mm_T > spike_mm))
    return {"mean_fd_mm": float(fd_mm_T.mean()), "max_fd_mm": float(fd_mm_T.max()), "moved": moved}


def _changed(traces: Traces, mean_V: np.ndarray, std_V: np.ndarray) -> dict[str, float | None]:
    """DVARS in percent of the mean signal (Power et al. 2012), and its largest value over its median.

    The median stands for the frames at rest (Afyouni and Nichols 2018, NeuroImage 172). A run whose mean has been
    taken off has no percent.
    """
    change_T, live_V = traces.dvars_T[1:], std_V > 0
    if not len(change_T) or not live_V.any():
        return {"dvars_percent": None, "max_dvars": None}
    level, median = float(np.mean(mean_V[live_V])), float(np.median(change_T))
    return {
        "dvars_percent": 100 * float(change_T.mean()) / level if level > float(np.median(std_V[live_V])) else None,
        "max_dvars": float(change_T.max()) / median if median > 0 else None,
    }


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Overlap of two masks, 0 to 1; two empty masks overlap by 0."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int(np.sum(first & second)) / total if total else 0.0


def temporal_snr(mean_V: np.ndarray, std_V: np.ndarray) -> float:
    """Median over voxels of mean over SD in time; constant voxels do not count."""
    alive_V = std_V > 0
    return float(np.median(mean_V[alive_V] / std_V[alive_V])) if alive_V.any() else 0.0


def side(left_right: Mapping[str, Any] | None) -> Side:
    """Whether a run lies as its own T1w says, from the similarity `as_is` and `mirrored`."""
    if left_right is None:
        return "undecided"
    as_is, mirrored = float(left_right["as_is"]), float(left_right["mirrored"])
    if abs(as_is - mirrored) <= SIDE_MARGIN * max(as_is, mirrored, 0.0):
        return "undecided"
    return "as it lies" if as_is > mirrored else "mirrored"


# --- verdict -------------------------------------------------------------------------------------------------------


class Limit(NamedTuple):
    """A threshold of the configuration, the measure that it is of, and how that is told."""

    key: str  # of `quality` in the configuration
    measure: str
    told: str
    floor: bool


# The gravest first: a run that is beyond several counts as lost by the first.
LIMITS = (
    Limit("max_zero_frames", "zero_frames", "{} frames that are zero everywhere", False),
    Limit("min_coverage", "coverage", "coverage {}", True),
    Limit("min_overlap", "overlap", "overlap {} with the template", True),
    Limit("min_similarity", "similarity", "similarity {} to the template", True),
    Limit("min_tsnr", "tsnr", "tSNR {}", True),
    Limit("max_mean_fd_mm", "mean_fd_mm", "mean FD {} mm", False),
    Limit("max_moved", "moved", "share of moved frames {}", False),
)


def beyond(measures: Measures, settings: Quality) -> dict[str, str]:
    """Measures beyond their thresholds, the gravest first, each with the reason in words."""
    reasons = {}
    for key, name, told, floor in LIMITS:
        value, bound = getattr(measures, name), getattr(settings, key)
        if value is None or bound is None or (value >= bound if floor else value <= bound):
            continue
        found = told.format(_apart(value, bound))
        reasons[name] = f"{found}, {'less' if floor else 'more'} than quality.{key} = {bound:g}"
    if settings.refuse_mirrored and measures.left_right == "mirrored":
        reasons["left_right"] = "left is right, by its own T1w; see quality.refuse_mirrored"
    if settings.refuse_filtered and measures.filtered:
        share = f"{measures.high_frequency:.2g} of the power of white noise above {HIGH_HZ} Hz"
        reasons["filtered"] = f"band-passed, {share}; see quality.refuse_filtered"
    return reasons


def judge(measures: Measures, settings: Quality) -> list[str]:
    """Why a run is quarantined, in words that name measure, value, threshold and key; empty: it is kept."""
    return list(beyond(measures, settings).values())


def _apart(value: float, bound: float) -> str:
    """A value in as many digits, three or more, as tell it from the threshold."""
    texts = (f"{value:.{digits}g}" for digits in range(3, 17))
    return next((text for text in texts if float(text) != bound), repr(value))


def require_frames(frames: int, least: int) -> None:
    """Quarantine a run that is too short."""
    if frames < least:
        raise Quarantined(f"{frames} frames, fewer than shards.min_frames = {least}")
