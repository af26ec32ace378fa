"""`python -m pipeline`: compose the configuration, check it, run it."""

from pipeline import torchrun
from pipeline.interruption import interruption_as_one_line

if __name__ == "__main__":
    with interruption_as_one_line():
        from pipeline.command_line import begin
        from pipeline.composition import main  # takes a second

        begin()
        main()
    torchrun.leave()
