"""``python -m fedpeft`` is the command ``fedpeft``."""

from fedpeft.cli import main

if __name__ == "__main__":
    main()
