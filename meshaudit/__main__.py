"""python -m meshaudit, and the program meshaudit.

The command line is loaded when it runs: the processes that verify archives load this module, not that.
"""


def main() -> None:
    """The entry point of the program."""
    from meshaudit import cli

    cli.main()


if __name__ == "__main__":
    main()
