"""`python -m trebuchet`."""

from trebuchet.cli import main

if __name__ == "__main__":
    main()
