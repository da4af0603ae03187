"""TensorBoard event files, read back with TensorBoard's own reader."""

import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.errors import InputError
from pipeline.pretrain.watch.tensorboard import Sink, events


def read(folder):
    """Tag -> (step, value) of every point that TensorBoard shows."""
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(point.step, point.value) for point in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def write(sink, first, last, loss, every=1):
    for step in range(first, last + 1):
        sink.write(step, loss=loss, val_loss=loss if step % every == 0 else None)


def test_values_come_back(tmp_path):
    with events(tmp_path / "state" / "tensorboard", 1) as sink:
        write(sink, 1, 6, 0.5, every=3)
    assert read(tmp_path / "state" / "tensorboard") == {
        "loss": [(step, 0.5) for step in range(1, 7)],
        "val_loss": [(3, 0.5), (6, 0.5)],
    }


def test_killed_run_leaves_one_value_a_step(tmp_path):
    """Killed after step 10, its checkpoint is of step 4; killed again after 6, goes on from 5 to the end."""
    killed = events(tmp_path, 1)
    write(killed, 1, 10, 1.0)
    killed._writer.flush()  # and nothing closes it: the process is gone
    killed_again = events(tmp_path, 5)
    write(killed_again, 5, 6, 2.0)
    killed_again._writer.flush()
    with events(tmp_path, 6) as resumed:
        write(resumed, 6, 12, 3.0)
    assert read(tmp_path)["loss"] == [
        *[(step, 1.0) for step in range(1, 5)],
        (5, 2.0),
        *[(step, 3.0) for step in range(6, 13)],
    ]


def test_run_that_starts_over_hides_what_was_there(tmp_path):
    killed = events(tmp_path, 1)
    write(killed, 1, 10, 1.0)
    killed._writer.flush()
    with events(tmp_path, 1) as resumed:
        write(resumed, 1, 3, 2.0)
    assert read(tmp_path)["loss"] == [(1, 2.0), (2, 2.0), (3, 2.0)]


def test_without_a_folder_nothing_is_written_or_imported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.chdir(tmp_path)
    with events(None, 1) as sink:
        sink.write(1, loss=0.5)
    assert list(tmp_path.iterdir()) == []


def test_missing_package_is_named_with_the_way_to_install_it(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError) as error:
        events(tmp_path, 1)
    assert error.value.where == "compute.tensorboard"
    assert "pip install tensorboard" in error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_a_number_is_left_out(tmp_path):
    with events(tmp_path, 1) as sink:
        sink.write(1, step=1, loss=float("nan"), energy_j=None, grad_norm=0.25)
    assert read(tmp_path) == {"step": [(1, 1.0)], "grad_norm": [(1, 0.25)]}


class FullDisk:
    file_writer = property(lambda self: self)

    def add_summary(self, _summary, _step):
        raise OSError(28, "No space left on device")

    def close(self):
        raise OSError(28, "No space left on device")


def test_full_disk_ends_the_sink_but_not_the_training(capsys):
    with Sink(FullDisk()) as sink:
        sink.write(1, loss=0.5, val_loss=0.25)
        sink.write(2, loss=0.5)
    assert capsys.readouterr().err == "No more TensorBoard events are written: [Errno 28] No space left on device\n"


def test_full_disk_at_the_end_is_told(capsys):
    Sink(FullDisk()).close()
    assert "No space left on device" in capsys.readouterr().err
