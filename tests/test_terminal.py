"""What reaches the terminal."""

from __future__ import annotations

import pytest

from pipeline.host import terminal


def test_text_cannot_steer_the_terminal_when_it_holds_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b[31m\x07caf\udce9.png"  # as a file may be called
    terminal.warn(f"left out: {name}")
    terminal.say("a table\n─────\tof two lines")
    said = capsys.readouterr()
    assert said.err == "warning: left out: \\x1b[31m\\x07caf\\udce9.png\n"
    assert said.out == "a table\n─────\tof two lines\n"
