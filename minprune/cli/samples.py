"""What `minprune prune` and `shrink` add to the page of a finished run: how both models go on with a text."""

from argparse import Namespace
from pathlib import Path

from minprune.cli.common import say, say_on_terminal
from minprune.errors import PruneError

SMALL = 2e9  # bytes of weights up to which a model is loaded for that
PROMPT = 32  # tokens, and as many are written


def add_samples(arguments: Namespace, target: Path, tokenizer, test) -> None:
    """Write the page of the run again, with how both models continue the test text, if they are small.

    The output is complete by then: where there can be no sample, a line says why, and the page stays as it is.
    """
    from minprune.evaluation.perplexity import generate
    from minprune.load import load_model
    from minprune.output.page import write_page
    from minprune.output.record import read_record
    from minprune.output.target import PAGE

    if sum(path.stat().st_size for path in target.glob("*.safetensors")) > SMALL:
        return
    say_on_terminal("writing samples")
    length = min(PROMPT, test.shape[1] // 4)
    samples = {"prompt": tokenizer.decode(test[0, :length], skip_special_tokens=True)}
    if not samples["prompt"]:  # of windows that are too short
        return
    try:
        for key, name in (("before", arguments.model), ("after", target)):
            model, _ = load_model(name, arguments.dtype, arguments.device)
            samples[key] = generate(model, tokenizer, samples["prompt"], length)
            del model  # before the next one is loaded
    except PruneError as error:
        say(f"no samples of text: {error}")
        return
    write_page(target / PAGE, read_record(target), samples)
