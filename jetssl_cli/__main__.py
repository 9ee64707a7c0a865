"""The command, where its script is not on the path: ``python -m jetssl_cli``."""

from jetssl_cli.cli.main import main

if __name__ == "__main__":
    main()
