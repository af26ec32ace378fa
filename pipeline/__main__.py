"""`python -m pipeline`: compose the configuration, check it, run it."""

from pipeline.composition import main

if __name__ == "__main__":
    main()
