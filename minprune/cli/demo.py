"""`minprune demo`."""

from argparse import Namespace

from minprune.cli.common import calm_transformers, command, console
from minprune.errors import from_extra


def add(commands) -> None:
    """The arguments of `minprune demo`."""
    parser = command(
        commands,
        "demo",
        run,
        "prune SmolLM2-135M in five ways and compare them",
        "Takes at most 5 minutes on two cores, downloads not counted. Prints a table and a continuation by each model; "
        "writes a figure and a pruned model.",
        "minprune demo",
    )
    parser.add_argument(
        "--output", metavar="DIR", default="demo-output", help="folder to write to, or write again (demo-output)"
    )


def run(arguments: Namespace) -> None:
    """The demonstration, into arguments.output."""
    from minprune.cli.comparison import demo

    with from_extra("course", "the figure of the demonstration"):
        import matplotlib.pyplot  # noqa: F401  # now, not after four minutes
    calm_transformers()
    demo(arguments.output, console())
