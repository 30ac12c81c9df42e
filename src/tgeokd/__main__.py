"""``python -m tgeokd``."""

from tgeokd.cli.main import main

if __name__ == "__main__":
    main()
