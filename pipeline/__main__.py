"""`python -m pipeline`: compose the configuration, check it, run it."""

from pipeline.host import torchrun
from pipeline.host.interruption import interruption_as_one_line

if __name__ == "__main__":
    with interruption_as_one_line():
        from pipeline.commands.command_line import begin
        from pipeline.commands.composition import main  # takes a second

        begin()
        main()
    torchrun.leave()
