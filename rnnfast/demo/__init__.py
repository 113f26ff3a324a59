"""`python -m rnnfast demo`: a character model of English, trained through the public layers.

The modules are an example to read as well as a command: `model` holds the model and its
gradients, `training` the loop with Adam, `gradients` measures how far back in time a gradient
reaches, `plot` draws both, `cli` is the command. They use nothing but NumPy and the layers.
"""

from rnnfast.demo.cli import main
from rnnfast.demo.model import CharModel
from rnnfast.demo.text import Text
from rnnfast.demo.training import evaluate, train

__all__ = ["CharModel", "Text", "evaluate", "main", "train"]
