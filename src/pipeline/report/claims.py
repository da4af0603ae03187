"""Claims: hypotheses stated in config/claims.yaml before results exist, decided from the tables.

A claim is supported when its whole interval lies on its side of the threshold, refuted when it lies on the other, and
inconclusive otherwise, or with too few. Its hash is kept from the first decision on: an edit afterwards is shown.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

import numpy as np
import pandas as pd
import yaml
from pydantic import ValidationError

from pipeline.artefact import digest, provenance, read_json, read_table, write_json, write_table
from pipeline.config import Count, Slug, Strict, Study
from pipeline.errors import InputError, nearest
from pipeline.report.estimates import ESTIMATORS, Estimate
from pipeline.stages import VERSIONS, stage_settings
from pipeline.tables import CLAIMS_SCHEMA

TABLES = ("pretrain", "probe", "benchmark", "scores", "spectral", "scaling")
SUPPORTED, REFUTED, INCONCLUSIVE, WITHDRAWN = "supported", "refuted", "inconclusive", "withdrawn"
SIGNIFICANT = 0.05  # where a test gives a p value, it must agree with the interval


class Verdict(Strict):
    """When a claim is supported."""

    direction: Literal["above", "below", "within"]
    threshold: float
    least_n: Count


class Claim(Strict):
    """One hypothesis."""

    claim: Slug
    figure: str
    statement: str
    estimate: dict[str, Any]
    verdict: Verdict

    @property
    def hash(self) -> str:
        """Stands for everything the claim says."""
        return digest(self.model_dump(mode="json"))


class Decision(NamedTuple):
    """A verdict, and why it is not more than that."""

    verdict: str
    note: str


def evaluate_claims(study: Study, tables_folder: Path, output: Path) -> pd.DataFrame:
    """Decide every claim of the study and write CLAIMS_SCHEMA.

    Raises
    ------
    InputError : the claims file is not valid, or a table is missing.
    """
    claims = load_claims(study.claims)
    tables = {name: read_table(tables_folder / f"{name}.parquet") for name in TABLES}
    state = output.parents[1] / "state" / "claims.json"
    first = read_json(state) if state.exists() else {}
    rows = [row for claim in claims for row in _rows(study, claim, tables, first)]
    rows += [_withdrawn(name, entry) for name, entry in first.items() if name not in {claim.claim for claim in claims}]
    table = pd.DataFrame(rows, columns=CLAIMS_SCHEMA.names)
    inputs: dict[str, str | Path] = {name: tables_folder / f"{name}.parquet" for name in TABLES}
    record = provenance(
        "claims", VERSIONS["claims"], stage_settings(study, "claims"), {"claims": study.claims, **inputs}
    )
    write_table(output, table, CLAIMS_SCHEMA, record)
    write_json(state, {**{claim.claim: _first(claim, table) for claim in claims}, **first})
    return table


def load_claims(path: str | Path) -> list[Claim]:
    """Claims of a YAML list; whatever an estimator does not know is an InputError that names the claim."""
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(path, "no such file", "a list of claims", "Set 'claims' in the configuration.") from error
    except yaml.YAMLError as error:
        raise InputError(path, f"text that is not YAML ({error})", "a list of claims", "Mend that line.") from error
    if not isinstance(entries, list):
        raise InputError(path, type(entries).__name__, "a list of claims", "See config/claims.yaml.")
    claims = [_claim(path, number, entry) for number, entry in enumerate(entries)]
    names = [claim.claim for claim in claims]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{path}: {twice[0]}", "two claims of that name", "one", "Rename one of them.")
    return claims


def _claim(path: str | Path, number: int, entry: Any) -> Claim:
    name = entry.get("claim", f"entry {number + 1}") if isinstance(entry, Mapping) else f"entry {number + 1}"
    where = f"{path}: {name}"
    try:
        claim = Claim.model_validate(entry)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        hint = fault.get("ctx", {}).get("hint", "See the head of config/claims.yaml.")
        raise InputError(f"{where}: {key}", fault["msg"], "a valid claim", str(hint)) from error
    _check_selectors(where, claim.estimate)
    return claim


def _check_selectors(where: str, estimate: Mapping[str, Any]) -> None:
    """Kind, selectors and their values against the signature of the estimator."""
    kind = str(estimate.get("kind", ""))
    if kind not in ESTIMATORS:
        raise InputError(f"{where}: estimate.kind", f"'{kind}'", "an estimator", nearest(kind, ESTIMATORS))
    parameters = inspect.signature(ESTIMATORS[kind]).parameters.values()
    known = {each.name: each for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}
    for name in estimate:
        if name != "kind" and name not in known:
            raise InputError(f"{where}: estimate.{name}", "an unknown selector", f"one of {kind}", nearest(name, known))
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in estimate:
            raise InputError(f"{where}: estimate", f"no '{name}'", f"the selectors of {kind}", f"Add '{name}: ...'.")
    hints = get_type_hints(ESTIMATORS[kind])
    for name, value in estimate.items():
        if (choices := get_args(hints.get(name, str))) and value not in choices:
            raise InputError(f"{where}: estimate.{name}", f"'{value}'", f"a {name}", nearest(str(value), choices))


def decide(estimate: Estimate, rule: Verdict) -> Decision:
    """Supported, refuted or inconclusive; inconclusive says why."""
    if estimate.n < rule.least_n:
        return Decision(INCONCLUSIVE, estimate.note or f"n = {estimate.n}, at least {rule.least_n} asked")
    if not np.isfinite([estimate.effect, estimate.low, estimate.high]).all():
        return Decision(INCONCLUSIVE, estimate.note or "no interval")
    inside, outside = _sides(estimate, rule)
    certain = not estimate.p_value >= SIGNIFICANT  # NaN: there is no test beside the interval
    if (inside or outside) and not certain:
        return Decision(INCONCLUSIVE, f"p = {estimate.p_value:.3f} after correction")
    if inside or outside:
        return Decision(SUPPORTED if inside else REFUTED, estimate.note)
    return Decision(INCONCLUSIVE, "; ".join(filter(None, ["the interval covers the threshold", estimate.note])))


def _sides(estimate: Estimate, rule: Verdict) -> tuple[bool, bool]:
    """Whether the whole interval lies on the claim's side, and whether it lies on the other."""
    low, high, threshold = estimate.low, estimate.high, rule.threshold
    if rule.direction == "above":
        return low > threshold, high < threshold
    if rule.direction == "below":
        return high < threshold, low > threshold
    return -threshold < low and high < threshold, low > threshold or high < -threshold


def _rows(
    study: Study, claim: Claim, tables: dict[str, pd.DataFrame], first: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    selectors = {name: value for name, value in claim.estimate.items() if name != "kind"}
    estimates = list(ESTIMATORS[claim.estimate["kind"]](study, tables, **selectors))
    if not estimates:
        note = f"this study has no '{selectors.get('model', '')}'"
        estimates = [("", Estimate(np.nan, np.nan, np.nan, 0, "", claim.estimate["kind"], note=note))]
    for name, estimate in estimates:
        decision = decide(estimate, claim.verdict)
        yield {
            "claim": f"{claim.claim}/{name}" if name else claim.claim,
            "figure": claim.figure,
            "statement": claim.statement,
            "decided_by": estimate.decided_by,
            "test": estimate.test,
            "threshold": f"{claim.verdict.direction} {claim.verdict.threshold:g}, n at least {claim.verdict.least_n}",
            "effect": estimate.effect,
            "low": estimate.low,
            "high": estimate.high,
            "p_value": estimate.p_value,
            "n": estimate.n,
            "verdict": decision.verdict,
            "note": "; ".join(filter(None, [decision.note, _edited(claim, first)])),
            "claim_hash": claim.hash,
            "simulated": estimate.simulated,
        }


def _edited(claim: Claim, first: Mapping[str, Any]) -> str:
    before = first.get(claim.claim)
    if before is None or before["hash"] == claim.hash:
        return ""
    return f"EDITED after its first result of {before['decided']} (then: {before['verdict']})"


def _first(claim: Claim, table: pd.DataFrame) -> dict[str, str]:
    """What is remembered of a claim's first decision."""
    own = table[(table["claim"] == claim.claim) | table["claim"].str.startswith(f"{claim.claim}/")]
    verdict = ", ".join(own["verdict"].unique())
    today = time.strftime("%Y-%m-%d", time.gmtime())
    return {
        "hash": claim.hash,
        "decided": today,
        "verdict": verdict,
        "statement": claim.statement,
        "figure": claim.figure,
    }


def _withdrawn(name: str, entry: Mapping[str, str]) -> dict[str, Any]:
    """A claim that was decided once and is no longer in the file stays in the table."""
    empty = {"decided_by": "", "test": "", "threshold": "", "n": 0, "simulated": False}
    numbers = dict.fromkeys(["effect", "low", "high", "p_value"], np.nan)
    note = f"WITHDRAWN after its first result of {entry['decided']} (then: {entry['verdict']})"
    about = {"claim": name, "figure": entry["figure"], "statement": entry["statement"], "claim_hash": entry["hash"]}
    return {**about, **empty, **numbers, "verdict": WITHDRAWN, "note": note}
