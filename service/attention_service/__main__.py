"""The command `attention-service`; without the server's packages it says what to install."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from attention_service.cli import app  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if str(error.name).startswith("attention_"):  # ours, and no extra would bring it
            raise
        sys.exit(
            f"attention-service: the package {error.name!r} is not installed.\n"
            "The service comes with an extra:  pip install 'attention-service[server]'\n"
            "(on NVIDIA GPUs:  pip install 'attention-service[server-gpu]')"
        )
    app()


if __name__ == "__main__":
    main()
