"""A simulated cohort with known truth, written as an fMRIPrep derivatives tree.

A voxel's signal is the networks of `anatomy` (fractional Gaussian noise with the person's Hurst exponent, and a small
share of haemodynamic events) plus white thermal noise plus frame-to-frame displacement times the image gradient,
which is white too. So the spectrum of a z-scored run is a sum of closed forms: `expected_spectrum`.
Axes: T frames, V voxels of the head, K networks, S sources, D directions, M motion parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artefact import atomic_folder
from pipeline.bold import noise
from pipeline.bold.motion import framewise_displacement
from pipeline.bold.simulate import anatomy, derivatives
from pipeline.config import Simulation

EVENT_SHARE = 0.10  # of the variance of each network's course
HURST_RANGE, SNR_RANGE = (0.6, 0.9), (1.5, 4.0)
SITES = {"north": (1.0, 1.0), "south": (1.15, 1.08)}  # scale of the intensity, scale of the noise's SD
INTENSITY, FLUCTUATION = 3000.0, 0.015  # of grey matter; SD of its signal as a share of it
SESSION_LOG_NOISE = 0.08  # SD of the log of the noise's SD from session to session
NOISE_NEIGHBOUR = 0.25  # weight of each neighbour along an axis, the voxel's own being 1
MEDIAN_FD_MM, LOG_FD, PATIENT_LOG_FD, DECADE_LOG_FD = 0.12, 0.30, 0.20, 0.04
SPIKE_CHANCE, SPIKE_SIZE, MOTION_MEMORY = 0.02, 6.0, 0.97
PEOPLE_PER_SIBLING_PAIR = 16

MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
MOTION_MM = np.array([1, 1, 1, 50, 50, 50])  # mm at the surface of the head of one unit of each
SHARES = ("share_fractional", "share_events", "share_motion", "share_noise")
_COHORT, _FAMILY, _PERSON, _SESSION, _RUN = range(5)  # what a stream of random numbers is for


@dataclass(frozen=True)
class Person:
    """What is drawn once for a person."""

    number: int
    subject: str
    family: int
    sex: str
    age: int
    diagnosis: str
    site: str
    hurst: float
    snr: float
    fd_mm: float


def simulate_cohort(simulation: Simulation, folder: Path, workers: int = 1) -> None:
    """Write the cohort's tree to `folder`, whole or not at all; the number of processes changes no byte of it.

    Beside fMRIPrep's files lie truth.tsv, one row a person, and truth.json, which says what its columns mean.
    """
    atlas, people = anatomy.load_atlas(simulation.resolution_mm), draw_cohort(simulation)
    with atomic_folder(folder) as tree:
        task = partial(_write_person, simulation, atlas, tree)
        if workers > 1:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                truth = list(pool.map(task, people))
        else:
            truth = [task(person) for person in people]
        derivatives.write_cohort(tree, [_participant(person) for person in people])
        derivatives.write_truth(tree, truth, _constants(simulation))


def draw_cohort(simulation: Simulation) -> list[Person]:
    """Everybody's labels: sex and diagnosis balanced and crossed, the rest at random; a few pairs are siblings."""
    rng, count = _stream(simulation, _COHORT), simulation.people
    order = rng.permutation(count)
    family = _families(count, rng)
    people = []
    for number in range(count):
        age, patient = int(rng.integers(18, 71)), bool(order[number] // 2 % 2)
        log_fd = LOG_FD * rng.standard_normal() + PATIENT_LOG_FD * (patient - 0.5) + DECADE_LOG_FD * (age - 44) / 10
        person = Person(
            number=number,
            subject=f"{number + 1:03d}",
            family=int(family[number]),
            sex="MF"[order[number] % 2],
            age=age,
            diagnosis="patient" if patient else "control",
            site=str(rng.choice(list(SITES))),
            hurst=float(rng.uniform(*HURST_RANGE)),
            snr=float(rng.uniform(*SNR_RANGE)),
            fd_mm=float(MEDIAN_FD_MM * np.exp(log_fd)),
        )
        people.append(person)
    return people


def expected_spectrum(truth_row: Mapping[str, Any], freqs_hz: np.ndarray, tr_s: float) -> np.ndarray:
    """Expected spectrum of a person's z-scored voxels, averaged over the standard brain mask.

    Parameters
    ----------
    truth_row : a row of truth.tsv; freqs_hz : in (0, Nyquist].

    Returns
    -------
    One-sided power, variance per Hz, of runs of unit variance whose mean has been taken away.

    It is exact up to two terms that are left out: the run's own variance stands for its expectation, and where
    networks overlap their events' delays (below 0.8 s) are taken as equal.
    """
    frames, hurst = int(truth_row["frames"]), float(truth_row["hurst"])
    lost = noise.mean_variance(frames, tr_s, hurst)
    share = {name: float(truth_row[name]) for name in SHARES}
    fractional = share["share_fractional"] / (1 - lost[0]) * noise.fgn_spectrum(freqs_hz, hurst, tr_s)
    events = share["share_events"] / (1 - lost[1]) * noise.hrf_spectrum(freqs_hz, tr_s)
    white = (share["share_noise"] + share["share_motion"]) / (1 - lost[2]) * 2 * tr_s
    return fractional + events + white


def expected_slope(truth_row: Mapping[str, Any], tr_s: float, band_hz: tuple[float, float] = (0.01, 0.1)) -> float:
    """Exponent beta of a 1/f^beta line through `expected_spectrum`, at a run's Fourier frequencies inside the band.

    Least squares in log-log, as `spectral.spectral_slope`; below the planted `beta` by the white noise, above it by
    the haemodynamic events.
    """
    freqs_hz = np.fft.rfftfreq(int(truth_row["frames"]), tr_s)
    freqs_hz = freqs_hz[(freqs_hz >= band_hz[0]) & (freqs_hz <= band_hz[1])]
    log_power = np.log(expected_spectrum(truth_row, freqs_hz, tr_s))
    return float(-np.polynomial.polynomial.polyfit(np.log(freqs_hz), log_power, 1)[1])


def _families(count: int, rng: np.random.Generator) -> np.ndarray:
    """Family of each person: one person in sixteen has a sibling in the cohort."""
    family, order = np.arange(count), rng.permutation(count)
    for pair in range(count // PEOPLE_PER_SIBLING_PAIR):
        family[order[2 * pair + 1]] = family[order[2 * pair]]
    return family


def _write_person(simulation: Simulation, atlas: anatomy.Atlas, tree: Path, person: Person) -> dict[str, Any]:
    """Write a person's runs; returns the row of truth.tsv."""
    runs = [_write_run(simulation, atlas, tree, person, session) for session in range(1, simulation.runs + 1)]
    measured = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    truth = {
        "participant_id": f"sub-{person.subject}",
        "sex": person.sex,
        "diagnosis": person.diagnosis,
        "site": person.site,
        "hurst": person.hurst,
        "beta": 2 * person.hurst - 1,
        "event_share": EVENT_SHARE,
        "frames": simulation.frames,
    }
    return truth | measured


def _write_run(
    simulation: Simulation, atlas: anatomy.Atlas, tree: Path, person: Person, session: int
) -> dict[str, float]:
    """Simulate one run and write its files; returns its part of the truth."""
    brain = _brain(simulation, atlas, person, session)
    intensity_scale, noise_scale = SITES[person.site]
    rng = _stream(simulation, _RUN, person.number, session)
    snr = person.snr / (noise_scale * np.exp(SESSION_LOG_NOISE * rng.standard_normal())) ** 2
    motion_TM = _motion(simulation.frames, person.fd_mm, rng)
    step_TD = np.diff(motion_TM[:, :3], axis=0, prepend=motion_TM[:1, :3])

    # In units of the standard deviation of grey matter's network signal.
    change_TV = _network_courses(simulation, person, brain, rng) @ brain.maps_KV
    change_TV += step_TD @ brain.gradient_DV / FLUCTUATION
    change_TV += _thermal_noise(atlas.head_XYZ, simulation.frames, rng) / np.sqrt(snr)
    bold_TV = INTENSITY * intensity_scale * (brain.intensity_V + FLUCTUATION * change_TV)

    fd_mm = _displacement_as_fmriprep(motion_TM)
    confounds = dict(zip(MOTION, motion_TM.T, strict=True)) | {"framewise_displacement": fd_mm}
    derivatives.write_run(tree, person.subject, session, atlas, bold_TV, brain.mask_V, confounds, simulation.tr_s)
    shares = _shares(_variances(brain, step_TD, snr)[:, atlas.in_mask_V], simulation, person.hurst)
    return shares | {"snr": snr, "mean_fd_mm": float(np.nanmean(fd_mm))}


def _brain(simulation: Simulation, atlas: anatomy.Atlas, person: Person, session: int) -> anatomy.Brain:
    """The person's brain in one session, drawn from the streams of family, person and session."""
    family = _stream(simulation, _FAMILY, person.family)
    own = _stream(simulation, _PERSON, person.number)
    today = _stream(simulation, _SESSION, person.number, session)
    return anatomy.make_brain(atlas, float(person.sex == "M"), float(person.diagnosis == "patient"), family, own, today)


def _network_courses(
    simulation: Simulation, person: Person, brain: anatomy.Brain, rng: np.random.Generator
) -> np.ndarray:
    """Time courses of the networks, (T, K), unit variance: fractional noise and events from common sources."""
    frames, sources = simulation.frames, brain.mixing_KS.shape[1]
    fractional_TK = noise.fractional_gaussian_noise(frames, person.hurst, rng, sources) @ brain.mixing_KS.T
    events_TK = noise.haemodynamic_events(frames, simulation.tr_s, brain.mixing_KS, anatomy.DELAYS_S, rng)
    return np.sqrt(1 - EVENT_SHARE) * fractional_TK + np.sqrt(EVENT_SHARE) * events_TK


def _variances(brain: anatomy.Brain, step_TD: np.ndarray, snr: float) -> np.ndarray:
    """Variance of each of the four parts of `SHARES` at each voxel, (4, V); motion's is that of the run itself."""
    delays_s = np.subtract.outer(anatomy.DELAYS_S, anatomy.DELAYS_S)
    covariance_KK = brain.mixing_KS @ brain.mixing_KS.T
    fractional_V = (1 - EVENT_SHARE) * anatomy.variance(brain.maps_KV, covariance_KK)
    events_V = EVENT_SHARE * anatomy.variance(brain.maps_KV, covariance_KK * noise.hrf_autocorrelation(delays_s))
    motion_V = anatomy.variance(brain.gradient_DV / FLUCTUATION, np.cov(step_TD.T, bias=True))
    return np.stack([fractional_V, events_V, motion_V, np.full_like(motion_V, 1 / snr)])


def _shares(variances: np.ndarray, simulation: Simulation, hurst: float) -> dict[str, float]:
    """Mean over voxels of each part's share in the variance about the run's own mean, which is what a z-score sees."""
    fractional, events, white = noise.mean_variance(simulation.frames, simulation.tr_s, hurst)
    kept = variances * np.array([[1 - fractional], [1 - events], [1.0], [1 - white]])
    return dict(zip(SHARES, (kept / kept.sum(axis=0)).mean(axis=1).tolist(), strict=True))


def _thermal_noise(head_XYZ: np.ndarray, frames: int, rng: np.random.Generator) -> np.ndarray:
    """White in time, correlated with the next voxels, of variance one in every voxel: the grid is wrapped round."""
    noise_TXYZ = rng.standard_normal((frames, *head_XYZ.shape), dtype=np.float32)
    for axis in (1, 2, 3):
        neighbours = np.roll(noise_TXYZ, 1, axis) + np.roll(noise_TXYZ, -1, axis)
        noise_TXYZ = (noise_TXYZ + NOISE_NEIGHBOUR * neighbours) / np.sqrt(1 + 2 * NOISE_NEIGHBOUR**2)
    return noise_TXYZ[:, head_XYZ]


def _motion(frames: int, fd_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Six head-motion parameters, mm and rad: independent steps with rare spikes, drawn back to the start slowly."""
    mean_step = 6 * np.sqrt(2 / np.pi) * (1 + SPIKE_CHANCE * (SPIKE_SIZE - 1))
    step_TM = fd_mm / mean_step * rng.standard_normal((frames, 6))
    step_TM *= np.where(rng.random((frames, 1)) < SPIKE_CHANCE, SPIKE_SIZE, 1.0)
    position_TM = np.zeros_like(step_TM)
    for t in range(1, frames):
        position_TM[t] = MOTION_MEMORY * position_TM[t - 1] + step_TM[t]
    return position_TM / MOTION_MM


def _displacement_as_fmriprep(motion_TM: np.ndarray) -> np.ndarray:
    """Framewise displacement in mm, (T,), NaN at the first frame as fMRIPrep has it."""
    fd_mm_T = framewise_displacement(motion_TM)
    fd_mm_T[0] = np.nan
    return fd_mm_T


def _stream(simulation: Simulation, *key: int) -> np.random.Generator:
    """Random numbers of one purpose, person and session, whoever draws others before."""
    return np.random.default_rng(np.random.SeedSequence(simulation.seed % 2**63, spawn_key=key))


def _participant(person: Person) -> dict[str, Any]:
    """The person's row of participants.tsv: what a real study would tell."""
    return {
        "participant_id": f"sub-{person.subject}",
        "family_id": f"fam-{person.family + 1:03d}",
        "sex": person.sex,
        "age": person.age,
        "diagnosis": person.diagnosis,
        "site": person.site,
    }


def _constants(simulation: Simulation) -> dict[str, Any]:
    """Everything that the cohort was drawn from."""
    return {
        "simulation": simulation.model_dump(mode="json"),
        "hurst_range": HURST_RANGE,
        "snr_range": SNR_RANGE,
        "event_share": EVENT_SHARE,
        "event_rate_hz": noise.EVENT_RATE_HZ,
        "sites": {name: {"intensity": scale, "noise_sd": sd} for name, (scale, sd) in SITES.items()},
        "networks": {name: network._asdict() for name, network in anatomy.NETWORKS.items()},
        "factors": anatomy.FACTORS,
        "log_extent": {"sex": anatomy.SEX_LOG_EXTENT, "diagnosis": anatomy.DIAGNOSIS_LOG_EXTENT},
        "sibling_share": anatomy.SIBLING_SHARE,
        "sd_between_people": {
            "displacement_mm": anatomy.DISPLACEMENT_MM,
            "centre_mm": anatomy.CENTRE_MM,
            "log_extent": anatomy.LOG_EXTENT,
            "log_side": anatomy.LOG_SIDE,
            "log_amplitude": anatomy.LOG_AMPLITUDE,
            "coupling": anatomy.COUPLING,
            "log_fd": LOG_FD,
        },
        "sd_between_sessions": {
            "log_amplitude": anatomy.SESSION_LOG_AMPLITUDE,
            "coupling": anatomy.SESSION_COUPLING,
            "log_noise": SESSION_LOG_NOISE,
        },
        "median_fd_mm": MEDIAN_FD_MM,
        "log_fd": {"patient": PATIENT_LOG_FD, "decade_of_age": DECADE_LOG_FD},
    }
