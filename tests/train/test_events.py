from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from qwenkit.train.events import EventWriter, JsonLog, Progress, format_seconds, masked_crc


def test_crc_of_the_standard_check_string() -> None:
    crc = 0xE3069283  # CRC-32C of "123456789"
    assert masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_tensorboard_reads_the_events(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path, first_step=0)
    writer.scalars(1, {"loss": 2.5, "learning_rate": 0.125})
    writer.scalars(300, {"loss": 1.5})
    writer.close()
    (file,) = tmp_path.iterdir()
    events = list(LegacyEventFileLoader(str(file)).Load())
    assert events[0].file_version == "brain.Event:2"
    found = [(event.step, v.tag, v.simple_value) for event in events for v in event.summary.value]
    assert found == [(1, "loss", 2.5), (1, "learning_rate", 0.125), (300, "loss", 1.5)]


def test_a_resumed_run_marks_where_it_goes_on(tmp_path: Path) -> None:
    EventWriter(tmp_path, first_step=7).close()
    (file,) = tmp_path.iterdir()
    start = list(LegacyEventFileLoader(str(file)).Load())[1]
    assert (start.step, start.session_log.status) == (7, 1)


def test_the_log_drops_lines_after_the_resumed_step(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = JsonLog(path, 0)
    for step in (1, 2, 3):
        log.write(step=step, loss=1.0 / step)
    log.close()
    path.write_text(path.read_text() + '{"step": 4, "lo')  # a crash cut this line
    JsonLog(path, 2).close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    JsonLog(path, 0).close()
    assert path.read_text() == ""


def test_progress_off_a_terminal_is_plain_lines() -> None:
    stream = io.StringIO()
    progress = Progress(20, stream)
    progress.show(5, 1.23456, 6543.0, 75.0)
    progress.close()
    assert stream.getvalue() == "step 5/20  loss 1.2346  6.5K tok/s  1m15s left\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.6, "1m00s"), (75, "1m15s"), (3723, "1h02m"), (-1, "0s")]
)
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
