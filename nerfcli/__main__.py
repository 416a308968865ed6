"""The program `nerf`, also as `python -m nerfcli`."""

from signal import SIG_DFL, SIGINT, default_int_handler, getsignal, signal


def main() -> None:
    """Ctrl-C while the command line is being imported ends it, without a traceback."""
    if getsignal(SIGINT) is default_int_handler:  # and not ignored, as in a background job
        signal(SIGINT, SIG_DFL)
    from nerfcli.cli import main

    main()


if __name__ == "__main__":
    main()
