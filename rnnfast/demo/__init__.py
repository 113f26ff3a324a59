"""`python -m rnnfast demo`: a character model of English, trained through the public layers.

The modules are an example to read as well as a command. `model` has the model and its gradients,
`training` the loop with Adam, `gradients` measures how far back in time a gradient reaches, `plot`
draws the losses and the gradients, and `cli` is the command. All but `plot` and `cli` use nothing
beyond NumPy, the standard library and the layers.
"""

from rnnfast.demo.cli import main
from rnnfast.demo.model import CharModel
from rnnfast.demo.text import Text
from rnnfast.demo.training import evaluate, train

__all__ = ["CharModel", "Text", "evaluate", "main", "train"]
