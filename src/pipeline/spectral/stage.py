"""The spectral stage: slope and Hurst exponent of raw BOLD with its controls, and of what each encoder reconstructs.

Raw and reconstructed signals of the same people and runs go through the same code; in a cell's comparison the comb of
the clips is left out of both. Axes: T frames, V voxels, P parcels,
D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.artefact import digest, provenance, read_json, write_table
from pipeline.bold.noise import fgn_spectrum, fractional_gaussian_noise
from pipeline.bold.template import Template, load_template, parcel_means
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.grid import Cell, reconstructs
from pipeline.spectral import connectivity, surrogates
from pipeline.spectral.hurst import HurstMethod, hurst_exponent
from pipeline.spectral.measure import (
    Curve,
    Finding,
    Spectrum,
    finite_mean,
    hurst,
    result_rows,
    slope,
    spectra_rows,
    voxel_mean_spectrum,
)
from pipeline.spectral.reconstruct import (
    Model,
    comb_frequencies,
    features_along_time,
    reconstruct_run,
    voxelwise_r2,
)
from pipeline.spectral.runs import PersonRun, found_part, person_runs
from pipeline.spectral.spectrum import MIN_FREQUENCIES, slope_of_spectrum, spectral_slope
from pipeline.stages import VERSIONS
from pipeline.tables import RESULT_SCHEMA, SPECTRA_SCHEMA, cell_columns, system_columns

KNOWN_HURST = 0.8  # of the control noise: beta 0.6, inside what rest shows
CONTROL_SERIES = 400
PARCEL_METHODS: tuple[HurstMethod, ...] = ("whittle", "dfa", "wavelet")
LEAST_R2 = 0.01  # below it no smoothing of a signal is as far from it as the reconstruction

Found = Iterator[Finding | Curve]


def analyse_raw(
    study: Study,
    template_folder: str | Path,
    manifests: Mapping[str, str | Path],
    evaluation_set: str | Path,
    spectral_out: str | Path,
    spectra_out: str | Path,
) -> None:
    """Slope, Hurst exponent and tSNR of raw BOLD, and of controls whose answer is known.

    Raises
    ------
    InputError : a data set was band-passed, has no run of `spectral.min_seconds`, or lies on another template.
    """
    template = load_template(template_folder)
    found: list[Finding | Curve] = []
    for run in person_runs(
        study, manifests, evaluation_set, {"template": template.key}, study.spectral.raw_people, True
    ):
        found += _raw_findings(study, template, run)
    _write(study, found, system_columns, "completed", spectral_out, spectra_out, {"evaluation_set": evaluation_set})


def analyse_cell(
    study: Study,
    cell: Cell,
    pretrain_folder: str | Path,
    template_folder: str | Path,
    manifests: Mapping[str, str | Path],
    evaluation_set: str | Path,
    spectral_out: str | Path,
    spectra_out: str | Path,
) -> None:
    """The same of what one encoder reconstructs of masked tokens, beside the raw runs and surrogates of equal R^2.

    A cell outside `spectral.blocks` gets tables without rows.

    Raises
    ------
    InputError : the shards' contract differs from the one it was trained for, or as in `analyse_raw`.
    """
    from pipeline.pretrain.engine.checkpoint import load_cell
    from pipeline.spectral.encoder import as_functions

    template, folder = load_template(template_folder), Path(pretrain_folder)
    encoder, metadata = load_cell(folder)
    status = read_json(folder / "summary.json")["status"]
    found: list[Finding | Curve] = []
    masked = metadata.get("objective", "masked reconstruction") == "masked reconstruction"
    if masked and reconstructs(study, cell):
        model = as_functions(study, cell, encoder, template)
        contract, people = metadata["contract"], study.spectral.people
        runs = person_runs(study, manifests, evaluation_set, contract, people, False)
        found += _of_runs(study, cell, model, template, runs)
    files = {"encoder": folder / "encoder.safetensors", "evaluation_set": evaluation_set}
    _write(study, found, partial(cell_columns, cell), status, spectral_out, spectra_out, files)


def _of_runs(study: Study, cell: Cell, model: Model, template: Template, runs: Iterable[PersonRun]) -> Found:
    seen: set[str] = set()
    prints: list[connectivity.Print] = []
    for run in runs:
        made_TV = reconstruct_run(run.bold_TV, model.predict, model.tiling, study.seed)
        yield from _cell_findings(study, cell.architecture, model, run, made_TV)
        yield from connectivity.of_run(cell.architecture, run, made_TV, template, _rng(study, run, connectivity.TASK))
        prints.append(connectivity.take_print(run, made_TV, template))
        if not seen:  # depends on the number of frames alone
            yield from _constant_input(study, cell.architecture, model, run)
        if run.dataset not in seen:  # a third of the encoding, were it done for everybody
            yield from _features(study, cell.architecture, model, run)
        seen.add(run.dataset)
    yield from connectivity.of_people(cell.architecture, prints)


def _raw_findings(study: Study, template: Template, run: PersonRun) -> Found:
    rng = _rng(study, run, "controls")
    frames, series = len(run.bold_TV), CONTROL_SERIES
    signals = {
        "raw": run.bold_TV,
        "time_shuffled": surrogates.time_shuffled(run.bold_TV, rng),
        "phase_randomised": surrogates.phase_randomised(run.bold_TV, rng),
        "white_noise": surrogates.white_noise(frames, series, rng),
        "known_slope": fractional_gaussian_noise(frames, KNOWN_HURST, rng, series),
    }
    for system, signal_TV in signals.items():
        yield from _slope_and_hurst(study, run, system, _spectrum(study, signal_TV, run.tr_s))
    freqs_F = np.fft.rfftfreq(frames, run.tr_s)[1:]
    power_F, width_hz = fgn_spectrum(freqs_F, KNOWN_HURST, run.tr_s), study.spectral.bandwidth / (frames * run.tr_s)
    planted = slope_of_spectrum(freqs_F, power_F, study.spectral.band_hz, (0.0,), width_hz)  # as `measure.slope`
    yield _finding(run, "known_slope", "slope", "beta_planted", float(planted))
    yield _finding(run, "known_slope", "hurst", "hurst_planted", KNOWN_HURST)
    yield from _finer(study, template, run)
    yield _finding(run, "raw", "quality", "tsnr", run.tsnr)


def _finer(study: Study, template: Template, run: PersonRun) -> Found:
    """Raw BOLD at other units: each voxel's own slope, spectra of parcel means, other estimators of H."""
    band_hz, bandwidth = study.spectral.band_hz, study.spectral.bandwidth
    voxels_V = spectral_slope(run.bold_TV, run.tr_s, band_hz, "multitaper", bandwidth, refuse_filtered=False)
    yield _finding(run, "raw", "slope", "beta_voxel", finite_mean(voxels_V))
    parcels_TP = parcel_means(run.bold_TV, template)
    spectrum = _spectrum(study, parcels_TP, run.tr_s)
    yield _finding(run, "raw", "slope", "beta_parcel", *slope(spectrum, band_hz))
    for method in PARCEL_METHODS:
        parcels_P = hurst_exponent(parcels_TP, run.tr_s, method, refuse_filtered=False)
        yield _finding(run, "raw", "hurst", f"hurst_parcel_{method}", finite_mean(parcels_P))


def _cell_findings(study: Study, architecture: str, model: Model, run: PersonRun, made_TV: np.ndarray) -> Found:
    """A reconstruction beside its own run: R^2, slopes, exponents, their differences, surrogates of equal R^2."""
    comb_hz = _comb(model, run)
    r2 = finite_mean(voxelwise_r2(run.bold_TV, made_TV))
    yield _finding(run, architecture, "reconstruction", "r2", r2)

    raw, made = _spectrum(study, run.bold_TV, run.tr_s), _spectrum(study, made_TV, run.tr_s)
    yield from _curves(run, {"raw": raw, architecture: made})
    pairs = {
        ("slope", "beta"): [_slope(study, spectrum, comb_hz) for spectrum in (made, raw)],
        ("hurst", "hurst"): [hurst(spectrum, comb_hz) for spectrum in (made, raw)],
    }
    for (task, metric), ((of_made, made_error), (of_raw, raw_error)) in pairs.items():
        yield _finding(run, architecture, task, metric, of_made, made_error)
        yield _finding(run, architecture, task, f"{metric}_raw", of_raw, raw_error)
        error = float(np.hypot(made_error, raw_error))
        yield _finding(run, architecture, task, f"{metric}_difference", abs(of_made - of_raw), error)

    for name, signal_TV in _matched(study, run, r2).items():
        spectrum = _spectrum(study, signal_TV, run.tr_s)
        yield from _curves(run, {name: spectrum})
        yield _finding(run, architecture, "slope", f"beta_{name}", *_slope(study, spectrum, comb_hz))


def _features(study: Study, architecture: str, model: Model, run: PersonRun) -> Found:
    """Slope of the encoder's own features along time, each channel z-scored, at the rate of its tokens."""
    features_TD = features_along_time(run.bold_TV, model.embed, model.tiling)
    scale_D = features_TD.std(axis=0)
    spectrum = _spectrum(study, features_TD / np.where(scale_D > 0, scale_D, 1), run.tr_s * model.tiling.patch_frames)
    yield from _curves(run, {"features": spectrum})
    yield _finding(run, architecture, "slope", "beta_features", *_slope(study, spectrum, _comb(model, run)))


def _constant_input(study: Study, architecture: str, model: Model, run: PersonRun) -> Found:
    """What the path itself makes of an input without any signal."""
    made_TV = reconstruct_run(np.zeros_like(run.bold_TV), model.predict, model.tiling, study.seed)
    spectrum = _spectrum(study, made_TV, run.tr_s)
    yield from _curves(run, {"constant_input": spectrum})
    yield _finding(run, architecture, "slope", "beta_constant_input", *_slope(study, spectrum, _comb(model, run)))


def _matched(study: Study, run: PersonRun, r2: float) -> dict[str, np.ndarray]:
    """Surrogates as far from the run as the reconstruction is."""
    if not LEAST_R2 < r2 < 1:
        return {}
    noisy_TV = surrogates.noise_matched(run.bold_TV, r2, _rng(study, run, "noise"))
    return {"noise_matched": noisy_TV, "smooth_matched": surrogates.smooth_matched(run.bold_TV, r2)}


def _slope_and_hurst(study: Study, run: PersonRun, system: str, spectrum: Spectrum) -> Found:
    yield from _curves(run, {system: spectrum})
    yield _finding(run, system, "slope", "beta", *_slope(study, spectrum))
    yield _finding(run, system, "hurst", "hurst", *hurst(spectrum))


def _slope(study: Study, spectrum: Spectrum, comb_hz: Sequence[float] = ()) -> tuple[float, float]:
    try:
        return slope(spectrum, study.spectral.band_hz, comb_hz)
    except ValueError as error:
        hint = "Raise spectral.offsets, widen spectral.band_hz or use longer runs."
        expected = f"at least {MIN_FREQUENCIES} beside the comb of the clips"
        raise InputError("spectral.band_hz", found_part(error), expected, hint) from error


def _spectrum(study: Study, signal_TV: np.ndarray, tr_s: float) -> Spectrum:
    return voxel_mean_spectrum(signal_TV, tr_s, study.spectral.bandwidth)


def _comb(model: Model, run: PersonRun) -> tuple[float, ...]:
    return tuple(comb_frequencies(model.tiling.context_frames, run.tr_s, model.tiling.offsets))


def _finding(run: PersonRun, system: str, task: str, metric: str, value: float, error: float = float("nan")) -> Finding:
    return Finding(run.dataset, system, run.person, task, metric, value, error)


def _curves(run: PersonRun, spectra: Mapping[str, Spectrum]) -> Iterator[Curve]:
    for system, spectrum in spectra.items():
        yield Curve(run.dataset, system, run.person, spectrum)


def _rng(study: Study, run: PersonRun, purpose: str) -> np.random.Generator:
    return np.random.default_rng(int(digest([study.seed, run.dataset, run.index, purpose]), 16))


def _write(
    study: Study,
    found: list[Finding | Curve],
    system: Callable[[str], dict[str, Any]],
    status: str,
    spectral_out: str | Path,
    spectra_out: str | Path,
    files: dict[str, str | Path],
) -> None:
    """Both tables; `system` turns the name of a signal into the columns that say who made it."""
    confidence, resamples = study.evaluate.confidence, study.evaluate.bootstrap
    simulated = {name: dataset.simulated for name, dataset in study.datasets.items()}
    rng = np.random.default_rng(study.seed)
    findings = result_rows((one for one in found if isinstance(one, Finding)), confidence, resamples, rng)
    curves = spectra_rows((one for one in found if isinstance(one, Curve)), confidence, resamples, rng)
    record = provenance("spectral", VERSIONS["spectral"], study.spectral.model_dump(), files)
    for path, rows, schema, more in (
        (spectral_out, findings, RESULT_SCHEMA, {"fold": -1, "status": status, "unit": "1"}),
        (spectra_out, curves, SPECTRA_SCHEMA, {}),
    ):
        whole = [{**row, **system(row["system"]), **more, "simulated": simulated[row["dataset"]]} for row in rows]
        write_table(path, pd.DataFrame(whole, columns=schema.names), schema, record)
