"""`python -m moesaic`: the command line, where its script is not on the path."""

from moesaic.cli import main

if __name__ == "__main__":
    main()
