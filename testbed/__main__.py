"""``python -m testbed``, and the command ``testbed``."""

import signal


def main() -> None:
    """Run the command. Until that can answer Ctrl-C, the process just ends by it: nothing has been made yet.

    Where Ctrl-C is ignored, as under nohup, it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from testbed import cli

    cli.main()


if __name__ == "__main__":
    main()
