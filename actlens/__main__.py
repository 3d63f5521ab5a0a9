"""`python -m actlens COMMAND`: small services beside the experiments."""

import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro
from tyro.extras import SubcommandApp

HEALTHY = 0
REFUSED = 3
"""The input was understood and is wrong. (Bad use of the command line is 2.)"""

app = SubcommandApp()


@app.command
def doctor(
    place: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PATH")],
    /,
    *,
    json: bool = False,
    revision: str | None = None,
    cameras: tuple[str, ...] = (),
    image_size: tuple[int, int] | None = None,
    n_heads: int | None = None,
    decoder_layers_used: Literal["first", "all"] | None = None,
) -> int:
    """Say what is wrong with a checkpoint and how to mend it.

    Exit code 0 if it is healthy, 3 if it has errors, 2 for bad use of this command.

    Args:
        place: A LeRobot folder or training run, an original ACT's folder or .ckpt, a bundled
            policy's name, or user/name on the Hugging Face hub.
        json: Print the diagnosis as JSON, for programs.
        revision: A branch, tag or commit of the hub repository.
        cameras: An original ACT's camera names, in the order of training.
        image_size: An original ACT's image height and width; 480 640 if not given.
        n_heads: An original ACT's number of attention heads; 8 if not given.
        decoder_layers_used: Whether an original ACT's first decoder layer was used, as its code
            does, or all; told by the weights if not given.
    """
    from actlens.checkpoints.original_act import DecoderLayersUsed
    from actlens.doctor import diagnose
    from actlens.report.doctor import render, to_json

    diagnosis = diagnose(
        place,
        revision=revision,
        cameras=cameras or None,
        image_size=image_size,
        n_heads=n_heads,
        decoder_layers_used=decoder_layers_used and DecoderLayersUsed(decoder_layers_used),
    )
    if json:
        sys.stdout.write(to_json(diagnosis) + "\n")
    else:
        from rich.console import Console

        Console().print(render(diagnosis))
    return HEALTHY if diagnosis.healthy else REFUSED


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    return app.cli(
        prog="python -m actlens",
        args=argv,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )


if __name__ == "__main__":
    sys.exit(main())
