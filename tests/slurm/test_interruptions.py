"""A cell's training on a real SLURM survives what a cluster does to it: nothing saved is lost, nothing runs twice.

Each test has a cluster of its own, and ends like this: the encoder is bitwise equal to that of an uninterrupted run on
this machine, the last start began where the last one had saved, and no job and no process is left.
"""

from __future__ import annotations

import os
import re
import signal

import pytest
from checkout import CELL, LONG, OTHER, Checkout
from cluster import Cluster, wait_for

END_S = 240  # for what was interrupted to end, on two cores that all tests share


def steps(site: Checkout) -> list[int]:
    """At which step each start of the training began."""
    return [attempt["step"] for attempt in site.attempts()]


@pytest.mark.parametrize("cluster", [False, True], indirect=True, ids=["at once", "after a signal"])
def test_a_preempted_cell_is_requeued_and_goes_on(cluster: Cluster, site: Checkout, prepared: Checkout) -> None:
    waiting = site.pretrain()
    job = site.training()
    saved = site.saved()
    with site.held_up(CELL):  # SLURM wakes whom it warns or ends
        urgent = cluster.run("sbatch", "--parsable", "-p", "urgent", "--gpus-per-node=2", "--wrap", "true")
        wait_for(lambda: cluster.jobs()[0].state != "RUNNING", 60, site.told)
    assert waiting.wait(END_S) == 0, site.told()
    assert {each.id: each.restarts for each in cluster.jobs()} == {job.id: 1, urgent: 0}
    assert len(steps(site)) == 2
    assert saved <= steps(site)[1]
    assert site.encoders()[CELL] == prepared.encoders()[CELL]
    assert site.left() == []


def test_a_cell_out_of_time_is_requeued_and_goes_on(cluster: Cluster, site: Checkout, prepared: Checkout) -> None:
    waiting = site.pretrain("--runtime-min", "2")
    job = site.training()
    with site.held_up(CELL):  # for a minute: SLURM counts time in minutes
        wait_for(lambda: cluster.jobs()[0].state != "RUNNING", 150, site.told)
    assert waiting.wait(END_S) == 0, site.told()
    (ended,) = cluster.jobs()
    assert ended.id == job.id
    assert ended.restarts == len(steps(site)) - 1 >= 1
    log = site.state / "slurm" / f"{job.id}_0_log.err"
    assert [0, *map(int, re.findall(r"stopped by a signal after step (\d+)", log.read_text()))] == steps(site)
    assert site.encoders()[CELL] == prepared.encoders()[CELL]
    assert site.left() == []


def test_a_cell_that_an_operator_requeues_goes_on(cluster: Cluster, site: Checkout, prepared: Checkout) -> None:
    waiting = site.pretrain()
    job = site.training()
    saved = site.saved()
    cluster.run("scontrol", "requeue", job.id)
    assert waiting.wait(END_S) == 0, site.told()
    assert {each.id: each.restarts for each in cluster.jobs()} == {job.id: 1}
    assert len(steps(site)) == 2
    assert saved <= steps(site)[1]
    assert site.encoders()[CELL] == prepared.encoders()[CELL]
    assert site.left() == []


def test_a_job_killed_without_warning_is_submitted_again_and_goes_on(
    cluster: Cluster, site: Checkout, prepared: Checkout
) -> None:
    waiting = site.pretrain()
    site.training()
    saved = site.saved()
    os.kill(site.attempts()[-1]["pid"], signal.SIGKILL)
    assert waiting.wait(END_S) == 0, site.told()
    assert len(cluster.jobs()) == len(steps(site)) == 2
    assert saved <= steps(site)[1]
    assert site.encoders()[CELL] == prepared.encoders()[CELL]
    assert site.left() == []


def test_a_cell_survives_the_crash_of_its_node(cluster: Cluster, site: Checkout, prepared: Checkout) -> None:
    waiting = site.pretrain()
    job = site.training()
    saved = site.saved()
    cluster.kill_node()
    cluster.start_node()
    assert waiting.wait(END_S) == 0, site.told()
    assert {each.id: each.restarts for each in cluster.jobs()} == {job.id: 1}
    assert len(steps(site)) == 2
    assert saved <= steps(site)[1]
    assert site.encoders()[CELL] == prepared.encoders()[CELL]
    assert site.left() == []


def test_a_new_snakemake_adopts_the_jobs_of_a_killed_one(cluster: Cluster, site: Checkout, prepared: Checkout) -> None:
    command = ("snakemake", "--profile", "slurm", "cells", "--configfile", *LONG)
    killed = site.start(*command)
    site.training(OTHER)
    jobs = cluster.jobs()
    with site.held_up(CELL, OTHER):
        os.killpg(killed.pid, signal.SIGKILL)  # with every cell that waits
        killed.wait()
        assert site.run("snakemake", "--unlock", "--configfile", *LONG).returncode == 0
        again = site.start(*command)
        broker_log = site.results / "logs" / "broker.log"
        wait_for(lambda: broker_log.read_text().count("adopts job") == 2, 60, site.told)
    assert again.wait(END_S) == 0, site.told()
    assert [(job.id, job.restarts) for job in cluster.jobs()] == [(job.id, 0) for job in jobs]
    assert len(jobs) == 2  # one a cell, as if nothing had happened
    assert steps(site) == [0]
    assert site.encoders() == prepared.encoders()
    assert site.left() == []


def test_a_job_that_slurm_refuses_ends_with_what_to_edit(cluster: Cluster, site: Checkout) -> None:
    refused = site.pretrain("--partition", "nosuch")
    assert refused.wait(END_S) == 2, site.told()
    said = site.log.read_text()
    assert "partition nosuch" in said
    assert "profiles/slurm/config.yaml" in said
    assert "Traceback" not in said
    assert cluster.jobs() == []
    assert not (site.state / "lease.json").exists()
    assert site.left() == []
